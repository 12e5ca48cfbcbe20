"""The samplers in the plane and what they share with those beyond it: seeds together and alone, parts, host reads."""

import dataclasses
import math

import pytest
import torch
from dispatch import host_reads
from torch import nn

from migelib.experiments import sampler_plane, samplers
from migelib.experiments.randomness import Streams, stream
from migelib.experiments.sampler_plane import PROFILES
from migelib.tasks.energies import PLANE_ENERGIES, PlaneEnergy

CPU = torch.device("cpu")
TARGETS = [PLANE_ENERGIES["banana"], PLANE_ENERGIES["u2"]]
SMALL = dataclasses.replace(PROFILES["quick"], steps=150, n=128, targets=("banana",))
TINY = dataclasses.replace(
    PROFILES["cpu"], targets=("banana", "u2"), steps=4, n=48, hidden=(16, 16), flow_steps=4, evaluation=500
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_a_stack_of_perceptrons_is_one_each_from_the_stream_of_its_seed():
    stack = samplers.perceptrons((3, 5, 2), 2, Streams([4, 7], "weights"))
    inputs = torch.randn(4, 9, 3, generator=generator(1))
    for row, seed in enumerate((4, 7)):
        drawn = stream(seed, "weights")
        uniform = [2 * torch.rand(shape, generator=drawn) - 1 for shape in ((2, 3, 5), (2, 5), (2, 5, 2), (2, 2))]
        for target in range(2):
            weights = [part[target] * math.sqrt(3 / width) for part, width in zip(uniform, (3, 3, 5, 5), strict=True)]
            hidden = nn.functional.silu(inputs[2 * row + target] @ weights[0] + weights[1])
            expected = hidden @ weights[2] + weights[3]
            torch.testing.assert_close(stack(inputs)[2 * row + target], expected)


def test_denoiser_learns_the_score_of_two_gaussians():
    sampler = generator(0)
    config = dataclasses.replace(SMALL, ardae_hidden=32, ardae_noise=0.1)
    line = PlaneEnergy("line", lambda z: z, ((0.0, 1.0), (0.0, 1.0)), dim=1)  # only its dimension counts
    networks = samplers.Denoiser([line], config, Streams([1], "denoiser"))

    def draw(n):
        return (torch.randint(2, (1, n, 1), generator=sampler) * 4 - 2) + torch.randn(1, n, 1, generator=sampler)

    for _ in range(500):
        networks.step(draw(256))
    points = draw(2000)
    truth = 2 * torch.tanh(2 * points) - points
    error = (networks.fit(draw(2000))(points) - truth).norm() / truth.norm()
    assert error < 0.5  # 1 for a score of zero, 0.89 for that of the Gaussian with these moments


def test_log_determinant_of_the_flow():
    torch.manual_seed(0)
    flow = samplers.SplineFlow(3).double()
    noise = torch.randn(4, 3, generator=generator(), dtype=torch.float64)
    log_det = flow(noise)[1].detach()
    for point, value in zip(noise, log_det, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda x: flow(x[None])[0][0], point)
        assert float(value) == pytest.approx(float(torch.linalg.slogdet(jacobian).logabsdet), abs=1e-8)


def test_the_energy_is_tempered_at_first_only():
    log_prob = samplers.tempering(lambda z: z.sum(-1), 0.0, SMALL)
    assert float(log_prob(torch.ones(1, 1, 2))) == pytest.approx(2 * SMALL.first_temper)
    assert float(samplers.tempering(lambda z: z.sum(-1), 0.9, SMALL)(torch.ones(1, 1, 2))) == 2


def test_every_entry_has_the_log_density_of_its_target():
    z = torch.randn(6, 5, 2, generator=generator())  # three seeds, two targets
    joint = samplers.joint_log_prob(TARGETS)(z)
    for entry in range(6):
        torch.testing.assert_close(joint[entry], TARGETS[entry % 2].log_prob(z[entry]))


def test_the_entropy_term_keeps_the_sampler_from_collapse():
    banana = PLANE_ENERGIES["banana"]
    kl = {}
    for name in ("none", "ssge-paper", "ege"):
        method = sampler_plane.methods(SMALL)[name].sampler
        trained = method.train([banana], SMALL.noise_dim, SMALL, Streams([7], name))
        kl[name] = banana.divergences(trained.draw(20_000, Streams([7], "test"))[0, 0], 40)[0]
    assert kl["ege"] < 0.3
    assert kl["ege"] < kl["ssge-paper"] < kl["none"]


def test_the_flow_is_trained():
    config = dataclasses.replace(SMALL, learning_rate=1e-2, flow_steps=60)
    banana = PLANE_ENERGIES["banana"]
    trained = samplers.Flow().train([banana], 0, config, Streams([0], "flow"))
    assert banana.divergences(trained.draw(20_000, Streams([0], "test"))[0, 0], 40)[0] < 0.5


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", ["ege", "ar-dae-2", "flow"])
def test_seeds_together_are_the_seeds_alone(name):
    together, *alone = (
        sampler_plane.methods(TINY)[name]
        .sampler.train(TARGETS, 8, TINY, Streams(seeds, name))
        .draw(50, Streams(seeds, "test"))
        for seeds in ([0, 3], [0], [3])
    )
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-7, atol=1e-9)
    assert (together[0] - together[1]).abs().mean() > 0.01


def test_every_part_has_the_results_of_the_whole():
    config = dataclasses.replace(TINY, methods=("exact", "ege", "flow"))
    whole, curves = sampler_plane.run_seeds(config, None, [1], CPU)[0]
    assert {quantity.split("/")[-1] for quantity in whole} == {*sampler_plane.METRICS}
    assert curves["ege/snapshots"].shape == (3, 2, 200, 2)  # in four steps three of the shares are the start
    assert curves["ege/samples"].shape == curves["flow/samples"].shape == (2, 200, 2)
    quantities = {}
    for name in config.methods:
        part = sampler_plane.run_seeds(dataclasses.replace(config, methods=(name,)), None, [1], CPU)[0][0]
        assert {quantity.split("/")[0] for quantity in part if quantity.endswith(("kl", "tv"))} == {name}
        quantities |= part
    assert quantities == whole


@pytest.mark.parametrize(("name", "checks"), [("none", 0), ("ssge-paper", 1), ("ege", 1), ("ar-dae-2", 1)])
def test_a_step_reads_the_surrogates_check_and_nothing_else(name, checks):
    config = dataclasses.replace(TINY, snapshots=())
    method = sampler_plane.methods(config)[name].sampler
    reads = host_reads(lambda: method.train(TARGETS, 8, config, Streams([0, 1], "reads")))
    assert reads.total() == reads["_local_scalar_dense"] == checks * TINY.steps


def test_a_step_of_the_flow_reads_nothing():
    few, more = (
        host_reads(lambda config=config: samplers.Flow().train(TARGETS, 0, config, Streams([0, 1], "reads")))
        for config in (TINY, dataclasses.replace(TINY, flow_steps=TINY.flow_steps + 1))
    )
    assert few == more  # its set-up reads, to find the masks of its layers


def test_every_profile_is_hashable_and_knows_its_methods():
    for config in PROFILES.values():
        assert len({config, dataclasses.replace(config)}) == 1
        assert {*config.methods} <= {*sampler_plane.methods(config)}
    known = sampler_plane.methods(PROFILES["cpu"])
    assert known["ar-dae-5-equal-time"].sampler.step_factor == PROFILES["cpu"].equal_time[1]
    with pytest.raises(ValueError, match=r"methods: unknown gan.*ssge-paper"):
        dataclasses.replace(PROFILES["cpu"], methods=("gan",))
    with pytest.raises(ValueError, match="targets: unknown cube"):
        dataclasses.replace(PROFILES["cpu"], targets=("cube",))
