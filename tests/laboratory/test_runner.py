"""The runner, its units on disk, where a run was made, and the command line."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import made_up
import numpy as np
import pytest
import torch

from migelib import __version__, experiments
from migelib.__main__ import main
from migelib.experiments import accuracy, cli, partials, provenance, records, runner

CPU = torch.device("cpu")
PACKAGE = Path(experiments.__file__).parents[1]
FAST = "entropy-gradient"  # the experiment that runs fastest


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves when it is told: `clock.now` in seconds."""

    class Clock:
        now = 0.0

        def monotonic(self):
            return self.now

        perf_counter = monotonic

    fake = Clock()
    monkeypatch.setattr(runner, "time", fake)
    monkeypatch.setattr(cli, "time", fake)
    return fake


def taking(seconds, experiment, clock):
    """Let each unit take as long as the next of these numbers, again and again."""
    original, durations = experiment.run_seeds, list(seconds)

    def run_seeds(*arguments):
        clock.now += durations[0]
        durations.append(durations.pop(0))
        return original(*arguments)

    experiment.run_seeds = run_seeds


def interrupted_after(count, experiment, monkeypatch):
    """Let the experiment be interrupted after so many units."""
    original = experiment.run_seeds

    def run_seeds(*arguments):
        if len(experiment.calls) >= count:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(experiment, "run_seeds", run_seeds)
    return lambda: monkeypatch.setattr(experiment, "run_seeds", original)


ALL = [(method, seed) for method in ("first", "second") for seed in range(4)]


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_a_run_in_memory_writes_nothing(experiment, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    run = experiments.run("made-up")
    assert experiment.calls == ALL
    assert not files(tmp_path)
    total = run["first/setting/error"].mean + run["second/setting/error"].mean
    assert run["all/setting/error"].mean == pytest.approx(total)
    assert run.curves["second/curve"].shape == (4, 3)
    assert run.made_with["seeds"] == [0, 1, 2, 3]


def test_every_unit_is_kept_and_an_interrupted_run_goes_on(experiment, monkeypatch, tmp_path):
    whole = experiments.run("made-up")
    experiment.calls.clear(), experiment.prepared.clear()
    mend = interrupted_after(5, experiment, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        experiments.record("made-up")
    kept = tmp_path / "own" / "partials" / "made-up" / "quick"
    units = sorted(tuple(file.name.split(".")[:3:2]) for file in files(kept))
    assert units == [
        *(("first", str(seed)) for seed in range(4)),
        ("first", "tuned"),
        ("second", "0"),
        ("second", "tuned"),
    ]
    mend()
    path = experiments.record("made-up", resume=True)
    assert experiment.calls == ALL
    assert experiment.prepared == [None, None, {"weight": np.array([3.0])}]  # what was tuned comes back
    loaded = records.load("made-up", "quick")
    assert loaded.quantities == whole.quantities
    np.testing.assert_array_equal(loaded.curves["first/curve"], whole.curves["first/curve"])
    assert files(tmp_path) == files(path)  # no units are left


def test_without_resume_earlier_units_are_deleted(experiment, monkeypatch):
    mend = interrupted_after(3, experiment, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        experiments.record("made-up")
    mend()
    experiment.calls.clear()
    experiments.record("made-up")
    assert experiment.calls == ALL


def test_units_of_other_settings_are_not_used(experiment, monkeypatch):
    mend = interrupted_after(3, experiment, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        experiments.record("made-up")
    mend()
    experiment.calls.clear()
    monkeypatch.setitem(experiment.PROFILES, "quick", made_up.Config(shift=1.0))
    experiments.record("made-up", resume=True)
    assert experiment.calls == ALL


def test_the_key_decides_not_the_name_of_the_file(experiment, tmp_path):
    part, folder = made_up.Config(methods=("first",)), partials.Folder(tmp_path / "a" / "b" / "c", CPU)
    unit = partials.Unit([({"first/s/error": 1.0}, {"first/curve": np.arange(2)})], 2.0, {"device": "CPU"})
    folder.save(part, [0], unit)
    assert folder.load(part, [0]).results[0][0] == {"first/s/error": 1.0}
    assert folder.load(part, [1]) is None
    other = dataclasses.replace(part, shift=1.0)
    folder._file(part, "0").rename(folder._file(other, "0"))
    assert folder.load(other, [0]) is None


@pytest.mark.parametrize("what", ["first.*.1", "first.*.tuned"])
def test_a_damaged_unit_is_named_and_made_again(experiment, monkeypatch, tmp_path, what):
    mend = interrupted_after(3, experiment, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        experiments.record("made-up")
    mend()
    (damaged,) = (tmp_path / "own" / "partials" / "made-up" / "quick").glob(f"{what}.npz")
    damaged.write_bytes(damaged.read_bytes()[:-30])
    experiment.calls.clear()
    with pytest.warns(UserWarning, match=rf"{damaged.name} is damaged and is made again"):
        experiments.record("made-up", resume=True)
    assert (("first", 1) in experiment.calls) == (what == "first.*.1")
    assert records.load("made-up", "quick")["first/setting/error"].n == 4


def test_a_time_limit_stops_before_a_unit_that_would_not_fit(experiment, clock, tmp_path):
    taking([10, 30], experiment, clock)
    with pytest.raises(runner.Unfinished, match="5 of 8 units left"):
        experiments.record("made-up", time_limit=79)  # 10 + 30 + 10, and the next might take 30
    assert experiment.calls == ALL[:3]
    with pytest.raises(runner.Unfinished, match="4 of 8 units left"):  # 30 is known from the units on disk
        experiments.record("made-up", time_limit=40)
    shutil.copytree(tmp_path / "own", tmp_path / "elsewhere")
    experiments.record("made-up", time_limit=1000, output=tmp_path / "elsewhere")
    assert experiment.calls == ALL
    assert records.load("made-up", "quick", tmp_path / "elsewhere").made_with["wall_s"] == 160


def test_all_seeds_are_run_together_on_cuda_only(experiment):
    job = runner.Job("made-up", "quick", experiment, made_up.Config(), CPU)
    assert job.seed_groups == [range(1), range(1, 2), range(2, 3), range(3, 4)]
    assert [part.methods for part in job.parts] == [("first",), ("second",)]
    assert dataclasses.replace(job, device=torch.device("cuda")).seed_groups == [range(4)]


def test_units_of_several_seeds_come_back(experiment, tmp_path):
    folder, config = partials.Folder(tmp_path / "a" / "b" / "c", torch.device("cuda")), made_up.Config()
    results = experiment.run_seeds(config, experiment.prepare(config, CPU), range(3), CPU)
    folder.save(config, range(3), partials.Unit(results, 1.5, {"device": "CPU"}))
    loaded = folder.load(config, range(3))
    assert (loaded.seconds, loaded.made_with) == (1.5, {"device": "CPU"})
    for (quantities, curves), (expected, arrays) in zip(loaded.results, results, strict=True):
        assert quantities == expected
        assert all(np.array_equal(curves[name], array) for name, array in arrays.items())
    assert partials.Folder(folder.path, CPU).load(config, range(3)) is None  # numbers of a CPU are not CUDA's


def test_a_config_of_ones_own(experiment):
    run = experiments.run("made-up", config=made_up.Config(seeds=3, methods=("first",)))
    assert run.profile == "custom"
    assert set(run.quantities) == {"first/setting/error", "all/setting/error"}
    with pytest.raises(ValueError, match=r"config.*made_up\.Config.*dict"):
        experiments.run("made-up", config={})


def test_a_study_is_run_in_place_of_a_profile(experiment):
    run = experiments.run("made-up", study="shifted")
    assert (run.profile, run.config["shift"]) == ("shifted", 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"profile": "huge"}, r"profile.*'huge'.*quick, full"),
        ({"profile": "shifted"}, r"profile.*'shifted'.*it is a study"),
        ({"study": "quick"}, r"study.*'quick'.*shifted; it is a profile"),
        ({"device": "tpu"}, r"device.*tpu"),
        ({"seeds": 1}, r"seeds.*1"),
        pytest.param(
            {"device": "cuda"},
            r"device.*cuda",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA"),
        ),
    ],
)
def test_bad_run_options(experiment, options, message):
    with pytest.raises(ValueError, match=message):
        experiments.run("made-up", **options)
    assert experiment.calls == []


def test_an_unknown_experiment_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match=r"'mi_gradient'.*did you mean mi-gradient"):
        experiments.get("mi_gradient")


def test_names_are_written_once():
    assert set(runner.MISSING_ORDER) == set(runner.NAMES)
    assert len(runner.NAMES) == len(set(runner.NAMES))


@pytest.mark.parametrize("name", runner.NAMES)
def test_experiments_follow_the_protocol(name):
    experiment = experiments.get(name)
    scales = runner.scales(experiment)
    assert len(scales) == len(experiment.PROFILES) + len(experiment.STUDIES)
    assert "quick" in experiment.PROFILES
    for scale, config in scales.items():
        parts = runner.Job(name, scale, experiment, config, CPU).parts
        assert len(set(parts)) == len(parts) > 0  # hashable, and no part twice
        assert hash(config) == hash(dataclasses.replace(config))
    assert set(getattr(experiment, "FLOORS", {})) <= set(experiment.METRICS)
    assert callable(experiment.prepare)
    assert callable(experiment.run_seeds)


def test_parts_of_the_benchmark_measure_what_the_whole_does():
    config = accuracy.Config(
        seeds=2,
        tasks=("toy", "gauss-diagonal"),
        peer_tasks=("gauss-diagonal", "half-cube"),
        cells=((2, 40), (3, 40)),
        peer_cells=((2, 40), (2, 50)),
        methods=("ssge-paper",),
        peers=("club",),
        trainings=(accuracy.PeerTraining(steps=2),),
        repeats=1,
        floor_repeats=1,
        hidden=8,
    )
    whole = accuracy.run_seeds(config, None, [0], CPU)[0]
    parts = [accuracy.run_seeds(part, None, [0], CPU)[0] for part in accuracy.units(config)]
    assert len(parts) == 2 + 4
    for kind in (0, 1):
        merged = {name: value for part in parts for name, value in part[kind].items()}
        assert merged.keys() == whole[kind].keys()
        for name, value in whole[kind].items():
            np.testing.assert_array_equal(merged[name], value)


# --- where a run was made ---------------------------------------------------------------------------------------------


def git(folder, *arguments):
    who = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True)


@pytest.fixture
def foreign(monkeypatch, tmp_path):
    """A folder of the package in a virtual environment inside somebody else's repository."""
    package = tmp_path / "venv" / "migelib"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (tmp_path / "theirs.py").touch()
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "theirs.py")
    git(tmp_path, "commit", "-qm", "Theirs")
    monkeypatch.setattr(provenance, "PACKAGE", package)
    return package


def test_somebody_elses_repository_is_not_named(foreign):
    assert provenance.commit() == f"migelib {__version__}"


def test_the_commit_of_the_own_checkout_is_named(foreign):
    git(foreign, "add", "__init__.py")
    git(foreign, "commit", "-qm", "Ours")
    assert len(provenance.commit()) == 40
    (foreign / "__init__.py").write_text("changed = True\n")
    assert provenance.commit().endswith("-dirty")


def test_publishing_needs_a_checkout(experiment, foreign, tmp_path):
    with pytest.raises(ValueError, match=r"publish.*checkout"):
        experiments.record("made-up", publish=True)
    assert experiment.calls == []
    git(foreign, "add", "__init__.py")
    assert experiments.record("made-up", publish=True) == tmp_path / "published" / "made-up" / "quick"
    assert records.available(records.directory()) == []  # it would be read in place of the published one


def test_a_record_names_all_machines_that_took_part():
    first = {"device": "CPU", "date": "2026-01-02", "commit": "a", "versions": {"torch": "2"}}
    second = {"device": "GPU", "date": "2026-01-01", "commit": "a", "versions": {"torch": "1"}}
    assert provenance.merged([first, second, first]) == first | {"device": "CPU, GPU"}


# --- the command line -------------------------------------------------------------------------------------------------


def test_list_shows_every_profile_and_study_once(experiment, capsys):
    records.save(experiments.run("made-up"), records.published())
    records.save(experiments.run("made-up", study="shifted"))
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines if line.startswith("made-up")]
    assert [row[1] for row in rows] == ["quick", "full", "shifted"]
    assert [row[-1] for row in rows] == ["published", "no", "yours"]
    assert "4 seeds" in lines[1]
    assert "0 s" in lines[1]
    (records.published() / "made-up" / "quick" / "meta.json").write_text("{")
    assert main(["list"]) == 0
    assert "meta.json is damaged" in capsys.readouterr().out


def test_run_prints_where_it_wrote_and_what(experiment, capsys, tmp_path):
    assert main(["run", "made-up", "--seeds", "3", "--output", str(tmp_path / "here")]) == 0
    out = capsys.readouterr().out
    assert f"wrote {tmp_path / 'here' / 'made-up' / 'quick'}" in out
    quantity = records.load("made-up", "quick", tmp_path / "here")["second/setting/error"]
    assert f"{quantity.mean:.4g}" in out
    assert main(["run", "made-up", "--study", "shifted"]) == 0
    assert records.load("made-up", "shifted").config["shift"] == 1.0


def test_check_prints_both_goes_on_after_a_failure_and_sums_up(experiment, monkeypatch, capsys):
    monkeypatch.setattr(runner, "NAMES", ("made-up", "other"))
    run = experiments.run("made-up", seeds=3)  # compared with as many seeds
    records.save(run, records.published())
    off = dataclasses.replace(run["first/setting/error"], values=(9.0, 9.5, 9.2))
    wrong = dataclasses.replace(run, experiment="other", quantities=run.quantities | {"first/setting/error": off})
    records.save(wrong, records.published())
    assert main(["check", "other", "made-up"]) == 1
    printed = capsys.readouterr()
    assert "FAILED other: other/quick:\n  first/setting/error" in printed.err
    assert printed.out.count("measured") == 2
    assert printed.out.splitlines()[-1] == "1 of 2 experiments agree with their records; FAILED: other"
    assert main(["check", "made-up"]) == 0
    assert f"{run['second/setting/error'].mean:.4g}" in capsys.readouterr().out


def test_the_command_line_names_what_is_unknown(capsys):
    assert main(["run", "no-such-experiment"]) == 2
    assert "no-such-experiment" in capsys.readouterr().err
    assert main(["check", "no-such-experiment"]) == 2
    assert main(["run", FAST, "--profile", "no-such-profile"]) == 2
    assert main(["run"]) == 2
    assert "--missing" in capsys.readouterr().err


def test_missing_makes_what_is_not_recorded_and_stops_in_time(experiment, monkeypatch, clock, capsys):
    monkeypatch.setattr(runner, "NAMES", ("made-up", "other", "third"))
    monkeypatch.setattr(runner, "MISSING_ORDER", ("third", "other", "made-up"))
    records.save(experiments.run("made-up", "full"), records.published())
    taking([10], experiment, clock)
    command = ["run", "--missing", "--profile", "full", "--time-limit", "70"]
    assert main(command) == 0  # four units of the first, two of the second; a third would end at 70
    out = capsys.readouterr().out
    assert "other full: 2 of 4 units left; then nothing else; go on by: python -m migelib run --missing" in out
    assert records.available() == [("made-up", "full"), ("third", "full")]
    assert main(command) == 0
    assert records.available() == [("made-up", "full"), ("other", "full"), ("third", "full")]
    assert main(command) == 0
    assert "no experiment lacks" in capsys.readouterr().out


def test_missing_goes_on_after_a_failure(experiment, monkeypatch, capsys):
    monkeypatch.setattr(runner, "MISSING_ORDER", ("broken", "made-up"))
    broken = made_up.make()
    broken.run_seeds = lambda *_: 1 / 0
    monkeypatch.setattr(runner, "get", lambda name: broken if name == "broken" else experiment)
    assert main(["run", "--missing", "--profile", "full"]) == 1
    assert "FAILED: broken" in capsys.readouterr().err
    assert records.available() == [("made-up", "full")]


def test_an_interruption_says_how_to_go_on(experiment, monkeypatch, capsys):
    mend = interrupted_after(3, experiment, monkeypatch)
    assert main(["run", "made-up", "--seeds", "3"]) == 130
    assert "go on by: python -m migelib run made-up --profile quick --seeds 3 --resume" in capsys.readouterr().err
    mend()
    assert main(["run", "made-up", "--profile", "quick", "--seeds", "3", "--resume"]) == 0
    assert len(experiment.calls) == 6


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"migelib {__version__}\n"


def python(code, folder, **options):
    """Run code in a fresh interpreter with this package."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


def test_a_closed_pipe_ends_quietly(tmp_path):
    code = (
        "import os, sys; from migelib.experiments import runner; runner.NAMES = ('toy',)\n"
        "read, write = os.pipe(); os.close(read); os.dup2(write, 1)\n"
        "from migelib.__main__ import main; sys.exit(main(['list']))"
    )
    run = python(code, tmp_path)
    assert (run.returncode, run.stderr) == (141, "")


def test_a_missing_extra_is_named(tmp_path):
    run = python(
        "import sys; sys.modules['pandas'] = None; from migelib.__main__ import main; sys.exit(main(['list']))",
        tmp_path,
    )
    assert run.returncode == 1
    assert run.stderr == "error: no package 'pandas'; install it by: pip install 'migelib[experiments]'\n"


def test_experiments_run_without_the_packages_that_only_some_need(tmp_path):
    """As on a machine with torch, numpy, jaxtyping, matplotlib, pandas and tqdm alone."""
    code = (
        "import sys\n"
        "for name in ('scipy', 'sklearn', 'zuko', 'pooch', 'mlxtend', 'seaborn'): sys.modules[name] = None\n"
        "from migelib.experiments import runner; from migelib.__main__ import main\n"
        "for name in runner.NAMES: runner.get(name)\n"
        f"sys.exit(main(['run', '{FAST}', '--seeds', '2']))"
    )
    run = python(code, tmp_path)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "migelib-records" / FAST / "quick" / "values.csv").exists()


def test_an_installed_package_keeps_its_published_records(tmp_path):
    """Installed in somebody else's repository; a user's own two seeds do not become the reference."""
    site, work = tmp_path / "venv", tmp_path / "work"
    shutil.copytree(PACKAGE, site / "migelib", ignore=shutil.ignore_patterns("__pycache__"))
    work.mkdir()
    (work / "theirs.py").touch()
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "work")
    git(tmp_path, "commit", "-qm", "Theirs")
    published = site / "migelib" / "experiments" / "records"
    before = {file: file.read_bytes() for file in files(published) if file.suffix != ".pyc"}
    for options in (["run", FAST, "--seeds", "2"], ["run", FAST, "--seeds", "2", "--publish"], ["check", FAST]):
        run = subprocess.run(
            [sys.executable, "-m", "migelib", *options],
            cwd=work,
            env=os.environ | {"PYTHONPATH": str(site)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (run.returncode == 0) == ("--publish" not in options), run.stderr
    assert {file: file.read_bytes() for file in files(published) if file.suffix != ".pyc"} == before
    assert "10 seeds" in run.stdout  # of the published record
    meta = json.loads((work / "migelib-records" / FAST / "quick" / "meta.json").read_text())
    assert meta["commit"] == f"migelib {__version__}"
