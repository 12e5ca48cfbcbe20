"""The benchmark experiment: its statistics, its samples and its cells."""

import itertools
import math
import operator
import statistics
from dataclasses import replace

import pytest
import torch
from dispatch import host_reads

from migelib import bounds
from migelib.experiments import accuracy, records
from migelib.experiments.randomness import stream
from migelib.experiments.training import Stack
from migelib.scores import SSGE
from migelib.tasks import PAIRS, pair

CPU = torch.device("cpu")
SMALL = accuracy.Config(
    seeds=2,
    tasks=("gauss-diagonal", "toy"),
    peer_tasks=("gauss-diagonal",),
    cells=((2, 40),),
    peer_cells=((2, 40),),
    repeats=2,
    floor_repeats=4,
    hidden=16,
    trainings=(
        accuracy.PeerTraining(steps=4),
        accuracy.PeerTraining("-held-out", steps=7, held_out=0.25),
        accuracy.PeerTraining("-equal-time", equal_time=True),
    ),
)


def test_errors_separate_bias_and_spread():
    generator = torch.Generator().manual_seed(0)
    truth = torch.tensor([3.0, 4.0])
    gradients = truth + torch.tensor([0.5, 0.0]) + 0.2 * torch.randn(20_000, 2, generator=generator)
    found = accuracy.errors(gradients, truth)
    assert found["bias"] == pytest.approx(0.1, rel=0.02)
    assert found["spread"] == pytest.approx(0.2 * math.sqrt(2) / 5, rel=0.02)
    assert found["relative_error"] ** 2 == pytest.approx(found["bias"] ** 2 + found["spread"] ** 2, rel=1e-4)
    assert found["cosine"] == pytest.approx(1, abs=0.01)
    assert set(accuracy.errors(gradients[:1], truth)) == {"relative_error", "cosine"}


def test_means_over_tasks_are_geometric():
    quantities = {
        "m/a-d2-n64/relative_error": 0.1,
        "m/b-c-d2-n64/relative_error": 0.4,
        "m/a-d2-n256/relative_error": 0.3,
        "m/a-d2-n64/cosine": 0.9,
    }
    assert accuracy.summarise(SMALL, quantities) == pytest.approx(
        {"m/all-n64/relative_error": 0.2, "m/all-n256/relative_error": 0.3}
    )


def test_all_methods_have_results():
    ((quantities, curves),) = accuracy.run_seeds(SMALL, None, [0], CPU)
    methods = {name.split("/")[0] for name in quantities} - {"truth"}
    peers = {peer + training.suffix for peer in SMALL.peers for training in SMALL.trainings}
    assert methods == {"exact", *accuracy.METHODS, *peers} - {"ar-dae-held-out"}
    assert all(math.isfinite(value) for value in quantities.values())
    assert all(name.split("/")[-1] in accuracy.METRICS for name in quantities)
    assert curves["ssge-paper/toy-d2-n40"].shape == (1, 32)
    assert curves["default/entropy-gauss-diagonal-d2-n40"].shape == (2, 2)
    assert curves["mine-f/gauss-diagonal-d2-n40"].shape == (1, 2)


def test_runs_repeat_and_seeds_differ():
    config = replace(SMALL, trainings=SMALL.trainings[:2], peers=("mine-ema", "club"))
    first, again, other = (accuracy.run_seeds(config, None, [seed], CPU)[0][0] for seed in (0, 0, 1))
    assert first == again
    assert first.keys() == other.keys()
    assert first["exact/toy-d2-n40/relative_error"] != other["exact/toy-d2-n40/relative_error"]


def test_a_method_that_rejects_the_samples_is_left_out():
    (cell,) = accuracy.run_cell(SMALL, [0], "gauss-diagonal", 32, 40, CPU, with_peers=False)
    assert set(cell) == {"exact", "ssge-paper", "default"}


def test_peers_find_a_strong_dependence():
    task = pair("gauss-diagonal", 2)
    truth = task.mutual_information_gradient()
    config = accuracy.Config(seeds=2, hidden=64)
    training = accuracy.PeerTraining(learning_rate=2e-3, steps=150)
    for name, peer in accuracy.PEERS.items():
        problem = accuracy.draw(task, 600, stream(0, "peers"))
        (gradient,) = accuracy.peer_gradients([problem], peer, config, training, [0], (name,))
        # Overfitting inflates the length of some; the direction and the order of magnitude must be right.
        assert float(torch.cosine_similarity(gradient, truth, dim=0)) > 0.9, name
        assert 0.5 < float(gradient.norm() / truth.norm()) < 3, name


@pytest.mark.parametrize("name", accuracy.JOINT_ENTROPY + accuracy.CODE_ENTROPY)
def test_truth_of_the_entropy_is_that_of_the_exact_score(name):
    """Mean over many sample sets, in units of its standard error, for the sign and the size."""
    config = replace(SMALL, floor_repeats=60, methods=("gaussian",), reference="gaussian", repeats=1)
    sign = -1 if name in accuracy.JOINT_ENTROPY else 1
    truth = sign * pair(name, 4).mutual_information_gradient().flatten()
    gradients = accuracy.run_entropy_cell(config, 0, name, 4, 250, CPU)["exact"]
    error = gradients.std(0) / len(gradients) ** 0.5
    assert ((gradients.mean(0) - truth).abs() < 4 * error + 0.02 * truth.norm()).all()
    assert 4 * float(error.norm()) < 0.7 * float(truth.norm())  # so that a wrong sign or factor is seen


def test_a_diverged_peer_has_no_gradient():
    """And leaves those of the other seeds as they are."""
    scale = torch.tensor([1.0, 1e30])[:, None, None]
    peer = accuracy.PEERS["mine-f"]._replace(estimate=lambda critic, config: bounds.nwj(critic * scale))
    problems = [accuracy.draw(pair("student", 2), 50, stream(seed, "diverged")) for seed in (0, 1)]
    training = accuracy.PeerTraining(steps=2)
    gradients = accuracy.peer_gradients(problems, peer, SMALL, training, [0, 1], ("weights",))
    assert gradients[0].all()
    assert not gradients[1].any()


def test_seeds_are_trained_together_as_alone():
    config = replace(SMALL, tasks=(), trainings=SMALL.trainings[:2], peers=(*accuracy.PEERS, "ar-dae"))
    together = accuracy.run_seeds(config, None, [0, 1], CPU)
    for seed, (quantities, _) in enumerate(together):
        ((alone, _),) = accuracy.run_seeds(config, None, [seed], CPU)
        assert quantities == pytest.approx(alone, rel=1e-4)
    assert together[0][0] != together[1][0]


@pytest.mark.parametrize("name", accuracy.PEERS)
def test_a_step_of_a_peer_reads_nothing_back(name):
    problems = [accuracy.draw(pair("gauss-diagonal", 2), 40, stream(seed, "reads")) for seed in (0, 1)]
    training = accuracy.PeerTraining(steps=7, held_out=0.25)

    def train():
        accuracy.peer_gradients(problems, accuracy.PEERS[name], SMALL, training, [0, 1], ("weights",), seconds=60.0)

    assert not host_reads(train)


def test_each_seed_keeps_its_best_weights():
    networks = Stack([torch.nn.Linear(1, 1) for _ in range(3)])
    best = accuracy.BestWeights(networks)

    def check(weight, values):
        for weights in networks.parameters():
            weights.detach().fill_(weight)
        best.update(torch.tensor(values))

    check(1.0, [0.5, math.nan, math.nan])
    check(2.0, [0.7, 0.1, math.nan])
    check(3.0, [0.6, 0.2, math.nan])
    best.restore()
    # The last seed never had a number: it keeps the last weights.
    assert all(weights.flatten().tolist() == [2.0, 3.0, 3.0] for weights in networks.parameters())


def test_equal_time_is_the_time_of_all_seeds_together(monkeypatch):
    """With a clock that ticks once a look: a limit of s seconds allows s steps."""
    ticks = itertools.count()
    monkeypatch.setattr(accuracy.time, "perf_counter", lambda: next(ticks))
    seen = []
    monkeypatch.setattr(accuracy, "descend", lambda optimiser, loss: seen.append(len(loss)))
    config = replace(SMALL, peers=("infonce",), trainings=SMALL.trainings[2:])
    accuracy.trained_gradients(config, [0, 1, 2], "gauss-diagonal", 2, 40, CPU, {0: 2, 2: 3})
    assert seen == [2] * 6  # the first step after the limit is the last one; seed 1 has no reference


def test_ar_dae_trains_longer_where_it_has_more_time():
    short, longer = (
        accuracy.denoising_gradient(
            accuracy.draw(pair("gauss-diagonal", 2), 50, stream(0, "time")), stream(0, "weights"), seconds
        )
        for seconds in (0.0, 0.3)
    )
    assert short.norm() < longer.norm()  # untrained, it is the score of a Gaussian without correlations


def test_equal_time_needs_its_reference():
    with pytest.raises(ValueError, match="reference"):
        replace(SMALL, reference="none")


def test_the_record_says_what_the_chapter_says():
    run = records.load("accuracy", "cpu", records.published())
    dims = (1, 2, 8, 16, 32, 128)

    def ratio(other, names, dims):
        """Geometric mean of the default's error as a multiple of another's, over the cells that have one."""
        cells = [f"{name}-d{dim}-n256" for name in names for dim in dims]
        pairs = [[f"{method}/{cell}/relative_error" for method in ("default", other)] for cell in cells]
        errors = [[run[name].mean for name in pair] for pair in pairs if pair[0] in run.quantities]
        return statistics.geometric_mean(a / b for a, b in errors if a > 1e-4) if errors else math.nan

    assert all(ratio("exact", ["toy"], [dim]) < 1.2 for dim in (8, 16, 32))
    assert ratio("ssge-paper", PAIRS, (16, 32, 128)) < 1 / 4
    assert {name for name in PAIRS for dim in dims if ratio("ssge-paper", [name], [dim]) > 1.1} == {
        "mixture-signs",
        "mlp-blocks",
        "spiral",
    }
    assert {name for name in PAIRS if ratio("ssge-paper", [name], dims) > 1} == {"spiral"}
    assert all(ratio("ssge-paper", [name], dims) < 1.1 for name in PAIRS)
    entropies = [f"entropy-{name}" for name in (*accuracy.JOINT_ENTROPY, *accuracy.CODE_ENTROPY)]
    assert all(ratio("exact", entropies, [dim]) < 0.7 for dim in (1, 2))
    assert ratio("exact", PAIRS, (16, 32, 128)) < 2
    copulas = [name for name in PAIRS if not name.startswith(("spiral", "mixture", "mlp"))]
    assert all(0.3 < ratio("exact", [name], [128]) < 4.4 for name in copulas)
    assert round(1 / ratio("ssge-paper", PAIRS, [128])) == 8
    few = {m: [run[f"{m}/{name}-d2-n64/relative_error"].mean for name in PAIRS] for m in ("default", "ssge-paper")}
    assert sum(map(operator.lt, *few.values())) == 13


@pytest.mark.parametrize(("name", "joint_part"), [("gauss-diagonal", -1.0), ("mlp-blocks", 0.0)])
def test_ssge_shrinks_the_joint_entropys_gradient_whether_it_is_right_or_wrong(name, joint_part):
    task = pair(name, 64)
    truth = task.mutual_information_gradient().flatten()

    def part(estimator, joint):
        problem = accuracy.draw(task, 256, stream(0, "parts", name))
        return float(accuracy.entropy_gradient(problem, joint, estimator).flatten() @ truth / truth.square().sum())

    exact = accuracy.exact_entropy_gradient(accuracy.draw(task, 256, stream(0, "parts", name)), True).flatten()
    assert float(exact @ truth / truth.square().sum()) == pytest.approx(joint_part, abs=0.1)
    assert abs(part(SSGE(), True)) < 0.8 * abs(part(None, True))
    assert abs(part(None, True)) > 0.8  # right on the one task, wrong on the other
