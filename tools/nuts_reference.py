"""Make migelib/tasks/logistic_reference.json: posterior moments of the logistic regression by a long run of NUTS.

Needs an environment of its own: `pip install numpyro scikit-learn`. Run from the repository's root:

    python tools/nuts_reference.py
"""

import json
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.diagnostics import effective_sample_size, gelman_rubin
from numpyro.infer import MCMC, NUTS
from sklearn.datasets import load_breast_cancer

CHAINS, WARMUP, DRAWS = 4, 1000, 10_000

jax.config.update("jax_enable_x64", True)
features, labels = load_breast_cancer(return_X_y=True)
features = (features - features.mean(0)) / features.std(0)
features = jnp.asarray(np.column_stack([features, np.ones(len(features))]))
signs = jnp.asarray(2.0 * labels - 1)


def energy(weights):
    """Minus the log density, as in migelib.tasks.energies.LogisticRegression."""
    return jax.nn.softplus(-signs * (features @ weights)).sum() + 0.5 * weights @ weights


kernel = NUTS(potential_fn=energy)
mcmc = MCMC(
    kernel, num_warmup=WARMUP, num_samples=DRAWS, num_chains=CHAINS, chain_method="sequential", progress_bar=False
)
mcmc.run(jax.random.PRNGKey(0), init_params=jnp.zeros((CHAINS, features.shape[1])), extra_fields=("diverging",))
draws = np.asarray(mcmc.get_samples(group_by_chain=True))
flat = draws.reshape(-1, draws.shape[-1])
reference = {
    "sampler": f"NUTS, numpyro {version('numpyro')}, float64, {CHAINS} chains of {DRAWS} draws after {WARMUP}",
    "largest_r_hat": float(np.max(gelman_rubin(draws))),
    "smallest_effective_sample_size": float(np.min(effective_sample_size(draws))),
    "divergences": int(mcmc.get_extra_fields()["diverging"].sum()),
    "mean": flat.mean(0).round(6).tolist(),
    "covariance": np.cov(flat.T).round(6).tolist(),
}
path = Path(__file__).parents[1] / "migelib" / "tasks" / "logistic_reference.json"
path.write_text(json.dumps(reference) + "\n")
print({name: value for name, value in reference.items() if name not in ("mean", "covariance")})
