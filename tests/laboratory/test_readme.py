"""Every number that README.md prints is recomputed from the records."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from migelib.experiments.records import available, load

README = Path(__file__).parents[2] / "README.md"
TEXT = " ".join(README.read_text().split())

METHODS = ("default", "ssge-paper", "gaussian")
JSD = "jsd-equal-time"
OUTSIDE = ("spiral", "mlp", "mlp-blocks")


@pytest.fixture(scope="module")
def accuracy():
    return load("accuracy", "cpu")


def tasks(record):
    """The tasks of the benchmark: all but the toy task, which has a table of its own."""
    return [name for name in record.config["tasks"] if name != "toy"]


def multiple(record, method, names, dim):
    """Geometric mean over tasks of a method's error, in multiples of that of the exact scores."""
    return math.exp(np.mean([math.log(record[f"{method}/{name}-d{dim}-n256/floor_multiple"].mean) for name in names]))


def toy(record):
    labels = {
        "ssge-paper": "`SSGE()`, the paper's estimator",
        "gaussian": "`GaussianScore()`",
        "default": "the default",
        "exact": "exact scores",
    }
    for method, label in labels.items():
        errors = (record[f"{method}/toy-d{dim}-n256/relative_error"].mean for dim in (8, 16, 32))
        yield f"| {label} | " + " | ".join(f"{error:.3f}" for error in errors) + " |"


def benchmark(record):
    inside = [name for name in tasks(record) if name not in OUTSIDE]
    elsewhere = [name for name in inside if not name.startswith("gauss")]

    def row(label, names, dim, digits, jsd):
        cells = [f"{multiple(record, method, names, dim):.{digits}f}" for method in METHODS]
        return f"| {label} | " + " | ".join([*cells, jsd]) + " |"

    def critic(names):
        return f"{multiple(record, JSD, names, 8):.1f}"

    yield row(f"{len(inside)} inside the family, d = 8", inside, 8, 2, critic(inside))
    yield row(f"of these, {len(elsewhere)} that are not Gaussian", elsewhere, 8, 2, critic(elsewhere))
    label = f"{len(OUTSIDE)} outside (`spiral`, `mlp`, `mlp-blocks`), d = 8"
    yield row(label, OUTSIDE, 8, 1, critic(OUTSIDE))
    yield row("the same, d = 32", OUTSIDE, 32, 1, "not run")
    errors = [record[f"default/{name}-d8-n256/relative_error"].mean for name in OUTSIDE]
    yield f"the default's errors are {min(errors):.2f} to {max(errors):.2f} in 8 + 8 dimensions"
    error = record["default/mixture-signs-d128-n256/relative_error"].mean
    yield (
        f"For 256 samples in 128 + 128 dimensions its error on a mixture of two signs is {error:.2f}; "
        "answering zero has 1"
    )


def images():
    large, small = load("infomax", "large"), load("infomax", "cpu")
    labels = {
        "mige": "MIGE, the paper's recipe (`SSGE()`)",
        "jsd": "Deep InfoMax: JSD",
        "infonce": "InfoNCE",
        "pca": "64 principal components of the pixels",
        "mige-moments": "MIGE, patch projection, Gaussian scores with a memory",
        "jsd-patches": "JSD, patch projection",
        "patches-pca": "that projection untrained, 64 principal components",
    }

    def cell(record, method):
        if f"{method}/y/test_accuracy" not in record.quantities:
            return "not run"
        return " / ".join(f"{record[f'{method}/y/{kind}_accuracy'].mean:.1f}" for kind in ("probe", "test"))

    passes, few = large.config["epochs"], small.config
    yield f"| | 50,000 images, {passes} passes | {few['train']:,} images, {few['epochs']} passes |"
    for method, label in labels.items():
        yield f"| {label} | {cell(large, method)} | {cell(small, method)} |"


def bottleneck():
    def errors(record, *methods):
        return [f"{record[f'{method}/mnist/test_error'].mean:.2f}" for method in methods]

    def difference(record):
        """Of one Gaussian a class to noise alone, paired by seeds, with its 95 % interval."""
        pairs = record.curves["mige-classes/test_error"] - record.curves["stochastic/test_error"]
        half = stats.t.ppf(0.975, len(pairs) - 1) * pairs.std(ddof=1) / math.sqrt(len(pairs))
        return f"{pairs.mean():+.2f} ± {half:.2f}"

    short, long, tuned, layers = (load("bottleneck", study) for study in ("large", "long", "tuned", "layers"))
    noise, vib, paper, classes, penalty = errors(
        short, "stochastic", "vib", "mige-marginal", "mige-classes", "confidence-penalty"
    )
    yield (
        f"Twelve passes: noise alone {noise}, VIB {vib}, `SSGE()` {paper}, one Gaussian a class {classes} "
        f"({difference(short)} to noise alone, paired, 95 %), a confidence penalty {penalty}."
    )
    noise, vib, classes = errors(long, "stochastic", "vib", "mige-classes")
    yield f"Thirty: noise alone {noise}, VIB {vib}, one Gaussian a class {classes} ({difference(long)})."
    noise, vib, smoothing = errors(tuned, "stochastic", "vib", "label-smoothing")
    ours = [q.mean for name, q in tuned.quantities.items() if re.fullmatch(r"mige.*/mnist/test_error", name)]
    assert len(ours) == 8
    yield (
        f"noise alone {noise}, VIB {vib}, the best of eight MIGE penalties {min(ours):.2f}, "
        f"label smoothing {smoothing}."
    )
    noise, vib, classes = errors(layers, "stochastic", "vib", "mige-classes")
    yield f"on images and layers, twenty-four: noise alone {noise}, VIB {vib}, one Gaussian a class {classes}."


def samplers():
    record, high = load("sampler-plane", "cpu"), load("sampler-high", "cpu")

    def extent(method):
        values = [record[f"{method}/{target}/kl"].mean for target in record.config["targets"]]
        return f"{min(values):.2f} to {max(values):.2f}"

    ridge, factor = record.config["ridge"], record.config["median_factor"]
    yield (
        f"KL in nats: {extent('ege')} by `Tikhonov(ridge={ridge:.0e}, median_factor={factor})`".replace("e-03", "e-3")
        + f", a setting chosen on four of the eight, {extent('ar-dae-5-equal-time')} by AR-DAE in the same time, "
        f"{extent('ssge-paper')} by `SSGE()`, {extent('flow')} by a normalising flow."
    )
    default, ssge = (1e3 * np.median(high.curves[f"{name}/logistic/step_seconds"]) for name in ("ege", "ssge-paper"))
    yield f"a step takes {default:.0f} ms, and {ssge:.0f} by `SSGE()`"


def autoencoders():
    record = load("wae", "cpu")

    def point(method, kind):
        return f"{record[f'{method}/{kind}/reconstruction'].mean:.0f}"

    def both(method, kind="d32-b128-e6-w5"):
        return f"{point(method, kind)} ({record[f'{method}/{kind}/energy_distance'].mean:.3f})"

    peers = [name for name in record.quantities if re.fullmatch(r"wae-\S+/d32-\S+/reconstruction", name)]
    method, kind, _ = min(peers, key=lambda name: record[name].mean).split("/")
    yield (
        f"{both('ssge-paper')} by `SSGE()`, {both('ege')} by one that is smoothed, "
        f"{both(method, kind)} by the better of"
    )
    longer = {
        point("ege", "d8-b128-e30-w5"),
        point("wae-mmd-imq", "d8-b128-e30-w300"),
        point("wae-mmd-energy", "d8-b128-e30-w30"),
    }
    yield f"after thirty passes the smoothed one and both MMDs have {' or '.join(longer)}."


def generators():
    def modes(record):
        return [f"{record[f'{name}/grid/modes'].mean:.0f} ± {record[f'{name}/grid/modes'].std:.0f}" for name in names]

    def quality(record):
        return [f"{record[f'{name}/grid/quality'].mean:.0f}" for name in names]

    names = ("ege", "vanilla", "pacgan")
    short, long = load("gan-plane", "cpu"), load("gan-plane", "large")
    assert long.config["training"]["steps"] == 5 * short.config["training"]["steps"]
    entropy, without, pacgan = modes(short)
    yield f"finds {entropy} with the entropy term (smoothed `SSGE`), {without} without and {pacgan} with PacGAN; "
    yield "{}, {} and {} % of the samples are at a mode.".format(*quality(short))
    yield f"After five times the steps: {', '.join(modes(long))}; {', '.join(quality(long))} %."


def costs():
    record = load("cost", "cpu")
    few, many = (
        [
            f"{10 ** record[f'{method}/n{n}-d16/time'].mean:.2g}"
            for method in ("streaming", "adaptive-gaussian", "adaptive")
        ]
        for n in (256, 1024)
    )
    yield f"from 256 samples in 16 + 16 dimensions takes `Streaming()` {few[0]} times as long as `SSGE()`, "
    yield "the default {} times on a Gaussian, {} on clusters; from 1,024 samples it is {}, {} and {} (".format(
        *few[1:], *many
    )


# What is left are settings and versions.
SETTINGS = """
    2020 2021 2.4 1e-3 0.25 31 32 31
    75 256 8 16 32 256 64 200 60,000 32 32 8 25 3.11 4.0
"""


def numbers(text):
    text = text.replace("CIFAR-10", "CIFAR")
    return re.findall(r"(?<![\w.])\d[\d,.]*(?:e-?\d+)?(?<![,.])", text)


def test_the_readme_prints_the_records_numbers_and_no_others(accuracy):
    rest = TEXT
    applications = (costs, images, bottleneck, samplers, autoencoders, generators)
    claims = [*toy(accuracy), *benchmark(accuracy)]
    for claim in claims + [claim for application in applications for claim in application()]:
        assert rest.count(claim) == 1, f"README.md should say, from the records: {claim}"
        rest = rest.replace(claim, "")
    assert numbers(rest) == SETTINGS.split()


def test_what_the_readme_says_of_all_records_holds(accuracy):
    assert len(tasks(accuracy)) == 18
    assert all(load(*name).made_with["device"] == "CPU" for name in available())
    assert load("infomax", "large").made_with["data"] == "CIFAR-10, JPEG q75 copy"
    peers = {name.split("/")[0] for name in accuracy.quantities} - {*METHODS, "exact", "truth"}
    assert min(peers, key=lambda peer: multiple(accuracy, peer, tasks(accuracy), 8)) == JSD
