"""Records, the runner and the command line; above all, that a check can fail."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from migelib import experiments
from migelib.__main__ import main
from migelib.experiments import records
from migelib.experiments.randomness import stream

BOOK = Path(__file__).parents[2] / "book"
FAST = "entropy_gradient"  # the experiment of the chapter that runs fastest


@dataclasses.dataclass(frozen=True)
class Config:
    seeds: int = 4
    shift: float = 0.0


@pytest.fixture
def experiment(monkeypatch, tmp_path):
    """An experiment made up here, in a records folder of its own; `calls` lists the seeds that ran."""
    calls = []

    def run_seed(config, seed, device):
        calls.append(seed)
        value = float(torch.randn((), generator=stream(seed, "value"))) + config.shift
        return {"method/setting/error": value}, {"curve": np.arange(3) + value}

    module = SimpleNamespace(
        Config=Config,
        PROFILES={"quick": Config(), "full": Config()},
        UNITS={"error": "1"},
        run_seed=run_seed,
        calls=calls,
    )
    monkeypatch.setattr(experiments, "NAMES", ("made_up",))
    monkeypatch.setattr(experiments, "get", lambda name: module)
    monkeypatch.setenv("MIGELIB_RECORDS", str(tmp_path))
    return module


def test_a_record_comes_back_as_it_was_written(experiment):
    run = experiments.run("made_up")
    records.save(run)
    loaded = records.load("made_up", "quick")
    assert loaded.quantities == run.quantities
    assert loaded.config == run.config
    assert loaded.made_with == run.made_with
    np.testing.assert_array_equal(loaded.curves["curve"], run.curves["curve"])
    assert records.available() == [("made_up", "quick")]
    quantity = loaded["method/setting/error"]
    values = run.curves["curve"][:, 0]
    assert (quantity.mean, quantity.std, quantity.n) == (values.mean(), pytest.approx(values.std(ddof=1)), 4)
    with pytest.raises(KeyError, match="method/setting/error"):
        loaded["typo"]


def test_check_passes_and_prints_nothing_that_depends_on_the_machine(experiment, capsys):
    experiments.record("made_up", "quick")
    run = experiments.run("made_up")
    records.check(run)
    first = capsys.readouterr().out
    name = "method/setting/error"
    nudged = dataclasses.replace(run[name], mean=run[name].mean + 0.5 * run[name].tolerance)
    records.check(dataclasses.replace(run, quantities={name: nudged}))
    assert capsys.readouterr().out == first
    assert "within" in first


@pytest.mark.parametrize("sign", [-1, 1])
def test_check_fails_just_outside_the_tolerance(experiment, sign):
    experiments.record("made_up", "quick")
    run = experiments.run("made_up")
    name = "method/setting/error"
    off = dataclasses.replace(run[name], mean=run[name].mean + sign * 1.01 * run[name].tolerance)
    with pytest.raises(records.RecordMismatch, match=name):
        records.check(dataclasses.replace(run, quantities={name: off}))


def test_check_fails_for_nan_missing_and_additional_quantities(experiment):
    experiments.record("made_up", "quick")
    run = experiments.run("made_up")
    name = "method/setting/error"
    nan = dataclasses.replace(run[name], mean=float("nan"))
    for quantities in ({name: nan}, {}, {name: run[name], "method/other/error": run[name]}):
        with pytest.raises(records.RecordMismatch):
            records.check(dataclasses.replace(run, quantities=quantities))
    with pytest.raises(records.RecordMismatch, match="no quantity"):
        records.check(run, prefix="typo")


def test_check_fails_for_other_settings(experiment):
    experiments.record("made_up", "quick")
    run = experiments.run("made_up", seeds=3)
    with pytest.raises(records.RecordMismatch, match="settings"):
        records.check(run)


def test_tolerance_follows_from_the_spread():
    quantity = records.Quantity.from_seeds(np.array([1.0, 2.0, 3.0]), "1")
    assert quantity.std == pytest.approx(1.0)
    assert quantity.tolerance == pytest.approx(8.610 * np.sqrt(2 / 3), rel=1e-3)  # t of 4 degrees of freedom at 0.9995
    assert records.Quantity.from_seeds(np.zeros(3), "1").tolerance == records.ROUNDING
    agreeing = records.Quantity.from_seeds(np.full(3, 90.0), "%", floor=1.0)
    assert agreeing.tolerance == 1.0
    assert "resolves" in agreeing.rule
    assert records.Quantity.from_seeds(np.array([1.0, 2.0, 3.0]), "1", floor=1.0) == quantity
    low, high = quantity.prediction_interval(0.99)
    assert (low, high) == pytest.approx((2 - 9.925 * np.sqrt(4 / 3), 2 + 9.925 * np.sqrt(4 / 3)), rel=1e-3)


def test_a_failed_run_leaves_the_earlier_record(experiment, monkeypatch, tmp_path):
    path = experiments.record("made_up", "quick")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()}
    monkeypatch.setattr(experiment, "run_seed", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        experiments.record("made_up", "quick")

    def fail(file):
        file.write(b"half a rec")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        records.write_atomically(path, fail)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()} == before


def test_a_quantity_that_is_not_finite_is_named_and_not_recorded(experiment, tmp_path):
    run = experiments.run("made_up")
    name = "method/setting/error"
    nan = dataclasses.replace(run[name], mean=float("nan"))
    with pytest.raises(ValueError, match=name):
        records.save(dataclasses.replace(run, quantities={name: nan}))
    assert not list(tmp_path.glob("*.json"))


def test_resume_goes_on_after_the_finished_seeds(experiment, monkeypatch, tmp_path):
    whole = experiments.run("made_up")
    experiment.calls.clear()
    original = experiment.run_seed

    def interrupted(config, seed, device):
        if seed == 2:
            raise KeyboardInterrupt
        return original(config, seed, device)

    monkeypatch.setattr(experiment, "run_seed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        experiments.record("made_up", "quick", resume=True)
    monkeypatch.setattr(experiment, "run_seed", original)
    experiments.record("made_up", "quick", resume=True)
    assert experiment.calls == [0, 1, 2, 3]
    assert records.load("made_up", "quick").quantities == whole.quantities
    assert not list((tmp_path / "partial").iterdir())


def test_resume_ignores_seeds_of_other_settings(experiment, monkeypatch):
    experiments.run("made_up", resume=True)
    monkeypatch.setitem(experiment.PROFILES, "quick", Config(shift=1.0))
    experiment.calls.clear()
    experiments.run("made_up", resume=True)
    assert experiment.calls == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"profile": "huge"}, r"profile.*'huge'.*quick, full"),
        ({"device": "tpu"}, r"device.*tpu"),
        ({"seeds": 1}, r"seeds.*1"),
    ],
)
def test_bad_run_options(experiment, options, message):
    with pytest.raises(ValueError, match=message):
        experiments.run("made_up", **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_without_cuda(experiment):
    with pytest.raises(ValueError, match=r"device.*cuda"):
        experiments.run("made_up", device="cuda")


def test_command_line(experiment, capsys):
    assert main(["list"]) == 0
    assert "made_up" in capsys.readouterr().out
    assert main(["run", "made_up", "--profile", "quick", "--seeds", "3"]) == 0
    assert len(records.load("made_up", "quick").made_with["seeds"]) == 3
    assert main(["check"]) == 0  # with the seeds that were recorded
    capsys.readouterr()
    assert main(["run", "made_up", "--profile", "quick"]) == 0
    assert main(["check", "made_up"]) == 0
    assert "within" in capsys.readouterr().out
    path = records.directory() / "made_up.quick.json"
    content = json.loads(path.read_text())
    content["quantities"]["method/setting/error"]["mean"] += 100
    path.write_text(json.dumps(content))
    assert main(["check", "made_up"]) == 1
    assert "FAILED" in capsys.readouterr().err


def test_command_line_names_what_is_unknown(capsys):
    assert main(["run", "no_such_experiment"]) == 2
    assert "no_such_experiment" in capsys.readouterr().err
    assert main(["check", "no_such_experiment"]) == 2
    assert main(["run", FAST, "--profile", "no_such_profile"]) == 2


@pytest.fixture
def copied_records(tmp_path):
    return Path(shutil.copytree(records.directory(), tmp_path / "records", ignore=shutil.ignore_patterns("partial")))


def nbval(notebook: Path, folder: Path) -> subprocess.CompletedProcess:
    """Run nbval on one notebook, with the records of that folder."""
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "--nbval",
            "--nbval-current-env",
            "-p",
            "no:cacheprovider",
            "-q",
            str(notebook),
        ],
        cwd=notebook.parents[1],
        env={**os.environ, "MIGELIB_RECORDS": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_nbval_fails_when_a_reference_number_is_changed(copied_records):
    path = copied_records / f"{FAST}.quick.json"
    content = json.loads(path.read_text())
    content["quantities"]["ssge/linear-d8/relative_error"]["mean"] *= 2
    path.write_text(json.dumps(content))
    run = nbval(BOOK / "03_entropy_gradients.ipynb", copied_records)
    assert run.returncode == 1, run.stdout
    assert "RecordMismatch" in run.stdout
    assert "ssge/linear-d8/relative_error" in run.stdout


def test_nbval_passes_with_an_unchanged_copy(copied_records):
    run = nbval(BOOK / "03_entropy_gradients.ipynb", copied_records)
    assert run.returncode == 0, run.stdout


LEAST_SEEDS = {"infomax": 3}  # a seed trains a network per method; the others have five or more


@pytest.mark.parametrize("pair", records.available(), ids=".".join)
def test_committed_records_are_sound(pair):
    """Made with today's settings, by an experiment that exists, from a clean commit, with a spread."""
    record = records.load(*pair)
    profile = experiments.get(pair[0]).PROFILES[pair[1]]
    config = json.loads(json.dumps(dataclasses.asdict(profile)))
    # A setting that is younger than the record has the default, which is what was done before.
    missing = {f.name: f.default for f in dataclasses.fields(profile) if f.name not in record.config}
    assert missing | record.config == config
    assert len(record.made_with["seeds"]) == config["seeds"] >= LEAST_SEEDS.get(pair[0], 5)
    assert not record.made_with["commit"].endswith("-dirty")
    for name, quantity in record.quantities.items():
        assert name == name.lower()
        assert len(name.split("/")) == 3
        assert quantity.n == config["seeds"]
        assert quantity.tolerance > 0


def test_every_experiment_has_a_quick_record():
    assert {name for name, profile in records.available() if profile == "quick"} == set(experiments.NAMES)


def test_streams_are_the_same_integers_under_numpy_1(monkeypatch):
    """NumPy 1.26 raises at `np.uint64 >> int`. Its integers, computed there, are these."""
    seeds = [experiments.stream(seed, "data", 3).initial_seed() for seed in range(2)]
    assert seeds == [1079658153855431813, 8881949583406466009]

    class Unshiftable(int):  # stands for NumPy 1's uint64
        def __rshift__(self, other):
            raise TypeError("ufunc 'right_shift' not supported for the input types")

        def __int__(self):
            return int.__add__(self, 0)

    class Sequence(np.random.SeedSequence):
        def generate_state(self, *args):
            return [Unshiftable(value) for value in super().generate_state(*args)]

    monkeypatch.setattr(np.random, "SeedSequence", Sequence)
    assert [experiments.stream(seed, "data", 3).initial_seed() for seed in range(2)] == seeds
