"""`spread=`: the measure of the variables with noise; and what the values and warnings of surrogates say."""

import math
import warnings

import pytest
import torch
from torch.autograd import forward_ad

from migelib import (
    SSGE,
    DenoisingScore,
    GaussianScore,
    NoGradientWarning,
    codes,
    conditional_entropy_surrogate,
    conditional_mutual_information_surrogate,
    entropy_surrogate,
    kl_surrogate,
    mutual_information_surrogate,
    total_correlation_surrogate,
)
from migelib.scores import DenoisingState
from migelib.tasks import CorrelatedGaussian, exact_score_surrogate, gaussian_log_prob

# Torch's own: its forward mode scripts functions.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")

LABELS = torch.arange(40) % 2
MEASURES = {
    "entropy": lambda x, z, w, **o: entropy_surrogate(z, **o),
    "information": lambda x, z, w, **o: mutual_information_surrogate(x, z, **o),
    "of labels": lambda x, z, w, **o: mutual_information_surrogate(LABELS, z, **o),
    "conditional entropy": lambda x, z, w, **o: conditional_entropy_surrogate(z, w, **o),
    "given labels": lambda x, z, w, **o: conditional_entropy_surrogate(z, LABELS, **o),
    "conditional information": lambda x, z, w, **o: conditional_mutual_information_surrogate(x, z, w, **o),
    "between given labels": lambda x, z, w, **o: conditional_mutual_information_surrogate(x, z, LABELS, **o),
    "total correlation": lambda x, z, w, **o: total_correlation_surrogate(z, **o),
    "divergence": lambda x, z, w, **o: kl_surrogate(z, gaussian_log_prob, **o),
}


def variables(n=40, seed=0):
    a, b, c = torch.randn(3, n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return a, torch.tanh(a) + 0.5 * b, b + c


def gradient(surrogate, z):
    return torch.autograd.grad(surrogate, z)[0]


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_the_value_is_zero_in_both_modes_and_the_gradient_is_not(measure):
    x, z, w = variables()
    z.requires_grad_()
    value = measure(x, z, w, estimator=SSGE())
    assert value.shape == ()
    assert float(value.detach()) == 0
    reverse = gradient(value, z)
    assert float(reverse.norm()) > 0
    with forward_ad.dual_level():
        value = measure(x, forward_ad.make_dual(z.detach(), torch.ones_like(z)), w, estimator=SSGE())
        dual = forward_ad.unpack_dual(value)
        assert float(dual.primal) == 0
        torch.testing.assert_close(dual.tangent, reverse.sum())


def test_codes_and_exact_scores_have_a_value_of_zero():
    x, z, _ = variables()
    code = codes.GaussianCode(x.requires_grad_(), torch.full_like(x, 0.5))
    sample = code.reparameterised(z)
    centres = codes.Centres(x.detach()[:2], torch.full((2,), 0.5, dtype=x.dtype), codes.CodeMoments.of(code))
    task = CorrelatedGaussian(2, torch.tensor(0.5, requires_grad=True))
    for surrogate in (
        codes.code_information_surrogate(code, sample, SSGE()),
        codes.mixture_information_surrogate(code, sample),
        codes.mixture_of_classes_surrogate(code, sample, centres),
        code.gaussian_surrogate(),
        exact_score_surrogate(task, *task.sample(30, torch.Generator().manual_seed(0))),
    ):
        assert float(surrogate.detach()) == 0
        assert surrogate.requires_grad


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_the_measure_is_that_of_what_needs_a_gradient_plus_noise(measure):
    x, z, w = variables()
    z.requires_grad_()
    spread = measure(x, z, w, estimator=SSGE(), spread=0.7, generator=torch.Generator().manual_seed(5))
    noise = torch.randn(z.shape, dtype=z.dtype, generator=torch.Generator().manual_seed(5))
    by_hand = measure(x, z + 0.7 * z.detach().std(0, correction=0) * noise, w, estimator=SSGE())
    found = gradient(spread, z)
    torch.testing.assert_close(found, gradient(by_hand, z))
    assert not torch.allclose(found, gradient(measure(x, z, w, estimator=SSGE()), z))


def test_every_variable_that_needs_a_gradient_is_spread_and_so_is_its_reference():
    x, z, _ = variables()
    x_ref, z_ref, _ = variables(60, 1)
    x.requires_grad_()
    z.requires_grad_()
    surrogate = mutual_information_surrogate(
        x, z, SSGE(), reference=(x_ref, z_ref), spread=0.3, generator=torch.Generator().manual_seed(5)
    )
    generator = torch.Generator().manual_seed(5)
    noisy, further = [], []
    for v, more in ((x, x_ref), (z, z_ref)):
        noise = torch.randn(100, 2, dtype=v.dtype, generator=generator) * 0.3 * v.detach().std(0, correction=0)
        noisy.append(v + noise[:40])
        further.append(more + noise[40:])
    by_hand = mutual_information_surrogate(*noisy, SSGE(), reference=tuple(further))
    torch.testing.assert_close(gradient(surrogate, z), gradient(by_hand, z))


def test_batch_axes_scales_and_the_default_generator():
    z = torch.randn(3, 50, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for unit in (1e-30, 1e30):
        found = gradient(entropy_surrogate(unit * z, SSGE(), spread=0.5), z)
        assert torch.isfinite(found).all()
        assert float(found.norm()) > 0
    torch.manual_seed(0)
    first = gradient(entropy_surrogate(z, SSGE(), spread=0.5), z)
    assert not torch.equal(gradient(entropy_surrogate(z, SSGE(), spread=0.5), z), first)
    torch.manual_seed(0)
    assert torch.equal(gradient(entropy_surrogate(z, SSGE(), spread=0.5), z), first)


def test_a_code_without_noise_has_the_finite_gradient_of_the_noisy_one():
    """z = (x, a x') with spread s: I = ln(1 + 1 / s^2) for any a, as the noise has the code's scale, held fixed: then
    its gradient in a is 1 / a (1 + s^2)."""
    slopes = []
    for seed in range(10):
        x = torch.randn(1000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        a = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
        z = x * torch.stack([torch.ones_like(a), a])
        generator = torch.Generator().manual_seed(seed + 100)
        mutual_information_surrogate(x, z, GaussianScore(), spread=0.5, generator=generator).backward()
        slopes.append(float(a.grad))
    slopes = torch.tensor(slopes)
    assert float(slopes.mean()) == pytest.approx(0.5 / 1.25, abs=5 * float(slopes.std()) / math.sqrt(10))


def test_a_constant_coordinate_stays_so_and_a_point_raises():
    z = torch.cat([torch.randn(20, 1), torch.ones(20, 1)], -1).requires_grad_()
    assert float(gradient(entropy_surrogate(z, SSGE(), spread=0.5), z)[:, 1].norm()) == 0
    with pytest.raises(ValueError, match=r"z.*equal"):
        entropy_surrogate(torch.ones(20, 2, requires_grad=True), SSGE(), spread=0.5)


@pytest.mark.parametrize("bad", [-0.1, math.nan, math.inf, "much", None, True])
def test_bad_spread(bad):
    with pytest.raises(ValueError, match=r"spread.*at least zero"):
        entropy_surrogate(torch.randn(5, 2, requires_grad=True), spread=bad)


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_a_warning_names_the_line_where_nothing_needs_a_gradient(measure):
    x, z, w = variables()
    with pytest.warns(NoGradientWarning, match="rsample") as caught:
        measure(x, z, w, estimator=SSGE())
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with torch.no_grad():
            measure(x, z, w, estimator=SSGE())
        with torch.inference_mode():
            measure(x.clone(), z.clone(), w.clone(), estimator=SSGE())


def test_the_warning_comes_once_a_line():
    z = variables()[1]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            entropy_surrogate(z, SSGE())
        entropy_surrogate(z, SSGE())
    assert len(caught) == 2


def test_parameters_of_the_target_alone_are_a_gradient():
    z = variables()[1]
    mean = torch.zeros(2, dtype=z.dtype, requires_grad=True)
    surrogate = kl_surrogate(z, lambda v: gaussian_log_prob(v - mean), SSGE())
    assert float(surrogate.detach()) == 0
    torch.testing.assert_close(gradient(surrogate, mean), -z.mean(0))


class Remembering:
    """An estimator with a memory: a part a role."""

    def __init__(self, pair):
        self.parts, self.calls = {}, []
        if pair:
            self.fit_pair = self._fit_pair

    def part(self, role):
        return self.parts.setdefault(role, Remembering(hasattr(self, "fit_pair")))

    def fit(self, samples):
        self.calls.append(samples.shape[-1])
        return SSGE().fit(samples)

    def _fit_pair(self, x, z, wanted):
        self.calls.append((x.shape[-1], z.shape[-1], wanted))
        return torch.ones_like(x), torch.ones_like(z)


ONLY_Z = (False, True)
ROLES = {
    "entropy": ({"z": [2]}, {"z": [2]}),
    "information": ({"z": [2], "x,z": [4]}, {"x,z": [(2, 2, ONLY_Z)]}),
    "conditional entropy": ({"z,given": [4]}, {"z": [2], "z,given": [(2, 2, (True, False))]}),
    "conditional information": ({"z,given": [4], "x,z,given": [6]}, {"x,(z,given)": [(2, 4, ONLY_Z)]}),
    "total correlation": ({"coordinates": [1], "z": [2]}, {"halves 0:2": [(1, 1, (True, True))]}),
    "divergence": ({"z": [2]}, {"z": [2]}),
}


@pytest.mark.parametrize("pair", [False, True])
@pytest.mark.parametrize("measure", ROLES)
def test_each_score_has_a_role(measure, pair):
    x, z, w = variables()
    estimator = Remembering(pair)
    MEASURES[measure](x, z.requires_grad_(), w, estimator=estimator).backward()
    assert {role: part.calls for role, part in estimator.parts.items()} == ROLES[measure][pair]
    assert estimator.calls == []


def test_the_networks_of_a_state_are_kept_by_role():
    state = DenoisingState()
    x, z, _ = variables()
    z.requires_grad_()
    estimator = DenoisingScore(steps=1, state=state)
    mutual_information_surrogate(x, z, estimator)
    entropy_surrogate(z, estimator)
    total_correlation_surrogate(torch.cat([z, x], -1), estimator)
    assert sorted(state.parts) == ["halves 0:2", "halves 0:4", "halves 2:4", "x,z", "z"]
    assert state.networks == {}
