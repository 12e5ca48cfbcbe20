"""Convert the records of the first format, two flat files each, to folders; nothing is run again.

    python tools/convert_records.py OLD_FOLDER NEW_FOLDER [OLD_NAME ...]

Every number, unit, tolerance and curve of the output is compared with what the first format's reader gives, and the
settings with those of the profile or study of today.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from migelib.experiments import records, runner

Predicate = Callable[[str], bool]


def everything(name: str) -> bool:
    """All quantities and curves."""
    return True


def part(*settings: str) -> Predicate:
    """Quantities and curves <method>/<setting>/<metric> whose setting starts with one of these."""
    return lambda name: any(field.startswith(settings) for field in name.split("/")[1:-1])


def rest(*settings: str) -> Predicate:
    """Those that `part` leaves."""
    return lambda name: not part(*settings)(name)


@dataclass(frozen=True)
class Target:
    """Where a part of an old record goes: experiment, profile or study, and which quantities and curves."""

    experiment: str
    profile: str
    quantities: Predicate = everything
    curves: Predicate = everything


def _same(old: str, *profiles: str) -> dict[str, list[Target]]:
    """Records that only change their place."""
    return {f"{old}.{profile}": [Target(old.replace("_", "-"), profile.removeprefix("cpu-"))] for profile in profiles}


def _split(old: str, profile: str, first: str, second: str, *settings: str) -> dict[str, list[Target]]:
    """A record of which these settings go to the experiment `first`, all others to `second`."""
    targets = [Target(first, profile, part(*settings), part(*settings))]
    return {f"{old}.{profile}": [*targets, Target(second, profile, rest(*settings), rest(*settings))]}


# Records of an experiment that was split go to several targets, which must take every quantity once.
MAPPING: dict[str, list[Target]] = {
    **_same("bound_variance", "quick", "full"),
    **_same("entropy_gradient", "quick", "full"),
    **_same("score_quality", "quick", "full"),
    **_same("mi_gradient", "quick", "full"),
    **_same("toy", "quick", "full"),
    **_same("score_estimators", "quick", "full"),
    **_same("coordinates", "quick", "full"),
    **_same("accuracy", "quick", "cpu"),
    **_same("beyond", "quick", "full"),
    **_same("infomax", "quick", "cpu", "cpu-large"),
    **{
        f"bottleneck.{profile}": [
            Target("code-gradients", profile, part("k16", "k64", "k256"), lambda name: False),
            Target("bottleneck", profile, rest("k16", "k64", "k256")),
        ]
        for profile in ("quick", "cpu")
    },
    **_same("bottleneck", "cpu-large", "cpu-long", "cpu-noise", "cpu-layers", "cpu-tuned"),
    "implicit_vi.quick": [Target("sampler-plane", "quick")],
    **_split("implicit_vi", "cpu", "sampler-high", "sampler-plane", "funnel-32d", "logistic"),
    **_split("gan", "quick", "gan-stacked", "gan-plane", "stacked"),
    **_split("gan", "cpu", "gan-stacked", "gan-plane", "stacked"),
    "gan.cpu-large": [Target("gan-plane", "large")],
    **_split("autoencoder", "quick", "implicit-posterior", "wae", "posterior-"),
    **_split("autoencoder", "cpu", "implicit-posterior", "wae", "posterior-"),
}


# Settings that have another name today, by experiment; those of one that was split, by where they go.
RENAMED: dict[str, dict[str, str]] = {
    "bottleneck": {"average": "decay", "decay": "rate_factor", "decay_every": "rate_every"},
    "code-gradients": {
        "gradient_codes": "codes",
        "gradient_n": "n",
        "gradient_batches": "batches",
        "gradient_past": "past",
        "methods": "bottleneck_methods",
    },
    "gan-plane": {"plane": "training"},
    "gan-stacked": {"stacked": "training", "stacked_methods": "methods", "methods": "plane_methods"},
    "implicit-posterior": {"posterior_methods": "methods"},
    "infomax": {"memory": "decay"},
    "sampler-high": {
        **{"high_steps": "steps", "high_hidden": "hidden", "high_equal_time": "equal_time"},
        **{name: f"plane_{name}" for name in ("steps", "hidden", "equal_time", "targets")},
    },
}


def present(experiment: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Recorded settings under their present names."""
    names = RENAMED.get(experiment, {})
    settings = {names.get(name, name): value for name, value in settings.items()}
    if experiment == "gan-plane":
        by_task = {task: found for task, found in settings["settings"].items() if task != "stacked"}
        settings["settings"] = {f"{m}/{task}": value for task, found in by_task.items() for m, value in found.items()}
    elif experiment == "gan-stacked":
        settings["settings"] = settings["settings"].get("stacked", {})
    return settings


def present_curves(experiment: str, curves: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Recorded curves under their present names: a method of `infomax` times the encoder beside its own step now."""
    alone = curves.get("encoder/step_ms") if experiment == "infomax" else None
    if alone is None:
        return curves
    curves = {name: curve for name, curve in curves.items() if name != "encoder/step_ms"}
    timed = [name.removesuffix("/step_ms") for name in curves if name.endswith("/step_ms")]
    return curves | {f"{method}/encoder_step_ms": alone for method in timed}


@dataclass(frozen=True)
class OldQuantity:
    """As in the first format."""

    mean: float
    std: float
    n: int
    unit: str
    tolerance: float
    rule: str


def read_old(path: Path) -> tuple[dict[str, Any], dict[str, OldQuantity], dict[str, np.ndarray]]:
    """The first format's reader: settings and origin, quantities, curves."""
    content = json.loads(path.read_text())
    quantities = {name: OldQuantity(**values) for name, values in content.pop("quantities").items()}
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as curves:
        return content, quantities, dict(curves)


def convert(path: Path, new_folder: Path) -> None:
    """Write the records that one old record becomes, and compare them with it."""
    content, quantities, curves = read_old(path)
    targets = MAPPING[path.stem]
    curves = present_curves(targets[0].experiment, curves)
    for name in quantities:
        taken = [target for target in targets if target.quantities(name)]
        assert len(taken) == 1, f"{path.stem}: {name} goes to {len(taken)} records"
    for name in curves:
        assert any(target.curves(name) for target in targets), f"{path.stem}: curve {name} goes nowhere"
    for target in targets:
        _write(target, content, quantities, curves, new_folder)
        _compare(target, content, quantities, curves, new_folder)


def as_pairs(value: Any) -> Any:
    """Settings with every dict as a list of pairs: what were dicts are tuples of pairs now, so that they hash."""
    if isinstance(value, dict):
        return [[key, as_pairs(item)] for key, item in value.items()]
    return [as_pairs(item) for item in value] if isinstance(value, list) else value


def _write(target: Target, content: dict, quantities: dict, curves: dict, new_folder: Path) -> None:
    experiment = runner.get(target.experiment)
    config = json.loads(json.dumps(asdict(runner.scales(experiment)[target.profile])))
    recorded = present(target.experiment, content["config"])
    shared = config.keys() & recorded.keys()
    pairs = {key: (recorded[key], config[key]) for key in shared}
    changed = {key: (old, new) for key, (old, new) in pairs.items() if as_pairs(old) != as_pairs(new)}
    assert not changed, f"{target.experiment}/{target.profile}: recorded and present settings differ: {changed}"
    print(f"  not recorded: {sorted(config.keys() - shared)}; no longer: {sorted(recorded.keys() - shared)}")
    floors = getattr(experiment, "FLOORS", {})
    summary = {
        name: records.Quantity(old.mean, old.std, old.n, old.unit, floors.get(name.split("/")[-1], 0.0))
        for name, old in quantities.items()
        if target.quantities(name)
    }
    kept = {name: curve for name, curve in curves.items() if target.curves(name)}
    made_with = made(experiment, content)
    records.save(records.Record(target.experiment, target.profile, config, made_with, summary, kept), new_folder)


def made(experiment: Any, content: dict) -> dict[str, Any]:
    """How a record was made; data where the experiment has some."""
    return {k: v for k, v in content["made_with"].items() if k != "data" or hasattr(experiment, "data_source")}


def _compare(target: Target, content: dict, quantities: dict, curves: dict, new_folder: Path) -> None:
    new = records.load(target.experiment, target.profile, new_folder)
    assert new.made_with == made(runner.get(target.experiment), content)
    assert new.quantities.keys() == {name for name in quantities if target.quantities(name)}
    for name, quantity in new.quantities.items():
        old = quantities[name]
        for field in ("mean", "std", "n", "unit"):
            assert getattr(quantity, field) == getattr(old, field), (name, field)
        np.testing.assert_allclose(quantity.tolerance, old.tolerance, rtol=1e-12, err_msg=name)
        assert quantity.rule == old.rule, name
        assert quantity.unit == runner.get(target.experiment).METRICS[name.split("/")[-1]], name
    assert new.curves.keys() == {name for name in curves if target.curves(name)}
    for name, curve in new.curves.items():
        assert curve.dtype == curves[name].dtype
        np.testing.assert_array_equal(curve, curves[name])


def main(old_folder: str, new_folder: str, *names: str) -> None:
    """Convert the named records, or all that `MAPPING` knows."""
    for name in names or MAPPING:
        targets = ", ".join(f"{target.experiment}/{target.profile}" for target in MAPPING[name])
        print(f"{name} -> {targets}")
        convert(Path(old_folder) / f"{name}.json", Path(new_folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
