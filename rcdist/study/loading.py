"""Tables of a study that were written elsewhere, back into MLflow: there it goes on, and its tables can be printed."""

import csv
import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from rcdist.cluster import preserved_environment
from rcdist.errors import ConfigError
from rcdist.estimate.cost import describe_cost
from rcdist.storage import write_file
from rcdist.study.driver import PlannedRun, open_study, plan_runs
from rcdist.study.results import COST, PARTS, QUALITY
from rcdist.study.settings import StudyConfig
from rcdist.study.timing import KINDS
from rcdist.study.worker import RESULT, identify
from rcdist.tracking.mlflow import start_or_continue
from rcdist.tracking.mlflow_runs import TrackedRun, find_study, log_values, set_tags

Row = Mapping[str, str]


def load_study(config: StudyConfig, folder: Path, say: Callable[[str], None]) -> None:
    """Add the runs and times of <study>.csv, <study>-runs.csv and <study>-curves.csv that MLflow has not.

    What is loaded counts as done: `train` goes on with the other arms and seeds.

    Args:
        config: the study.
        folder: of the files, as `tables.write_tables` writes them.
        say: is given a line of what was done.

    Raises:
        ConfigError: a file is missing, or is none of a study.
    """
    arms = _read(folder / f"{config.name}.csv", "arm", "seeds", "device_s")
    runs = _read(folder / f"{config.name}-runs.csv", "arm", "seed")
    curves = _read(folder / f"{config.name}-curves.csv", "arm", "seed", "tokens", QUALITY)
    with preserved_environment(), ExitStack() as stack:
        config = config.model_copy(update={"storage_path": str(config.storage.resolve())})
        # A file may have seeds that the settings do not ask for.
        most = max((int(row["seed"]) for row in runs), default=0) + 1
        planned = {(run.arm, run.seed): run for run in plan_runs(_with_seeds(config, most))}
        tracker = open_study(config, stack)
        try:
            found = find_study(config.tracking_uri, config.tracking.experiment, config.name, ())
            assert found is not None
            parent, children = found
            present = {(run.tags.get("study/arm"), run.tags.get("study/seed")) for run in children}
            shares = {row["arm"]: float(row["device_s"] or 0) / max(int(row["seeds"]), 1) for row in arms}
            count = 0
            for row in runs:
                key = row["arm"], int(row["seed"])
                if key not in planned or (row["arm"], row["seed"]) in present:
                    continue
                curve = [point for point in curves if (point["arm"], point["seed"]) == (row["arm"], row["seed"])]
                _add_run(config, parent.run_id, planned[key], row, curve, shares.get(row["arm"], 0.0))
                count += 1
            _add_times(config, parent, arms)
        finally:
            tracker.finish("FINISHED", timeout_s=3 * config.tracking.timeout_s)
        say(f"{count} of {len(runs)} runs of {folder} were added to {config.name}")


def _read(path: Path, *columns: str) -> list[Row]:
    try:
        with path.open(newline="") as file:
            rows: list[Row] = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        rule = f"{path.name} cannot be read ({getattr(error, 'strerror', None) or error})"
        raise ConfigError("from", str(path.parent), rule, "Name a folder that --out was written to") from error
    lacking = [name for name in columns if rows and name not in rows[0]]
    if lacking:
        rule = f"{path.name} has no column {lacking[0]}"
        raise ConfigError("from", str(path.parent), rule, "Name a folder that --out was written to")
    return rows


def _with_seeds(config: StudyConfig, seeds: int) -> StudyConfig:
    arms = {name: arm.model_copy(update={"seeds": seeds}) for name, arm in config.arms.items()}
    return config.model_copy(update={"arms": arms, "study": config.study.model_copy(update={"only": []})})


def _add_run(config: StudyConfig, parent: str, run: PlannedRun, row: Row, curve: list[Row], device_s: float) -> None:
    """Make one run in MLflow, and its result in the storage path."""
    settings = run.config
    metrics = {name: float(value) for name, value in row.items() if value and name.startswith(("eval/", "evaluate/"))}
    metrics[COST] = float(row.get(COST) or device_s)
    tracker = start_or_continue(
        config.tracking_uri,
        config.tracking.experiment,
        settings.name,
        None,
        config=settings.model_dump(mode="json"),
        facts={"cost": {key: value for key, value in describe_cost(settings).items() if key != "matrices"}},
        tags={"mlflow.parentRunId": parent, "study/arm": run.arm, "study/seed": str(run.seed), "study/loaded": "true"},
        timeout_s=config.tracking.timeout_s,
    )
    points = sorted((float(point["tokens"]), float(point[QUALITY])) for point in curve)
    for tokens, quality in points[:-1]:
        step = int(tokens) // settings.train.global_batch_tokens
        tracker.log(step, {"train/tokens": tokens, QUALITY: quality}, step)
    # The run's own values are not rounded as those of its curve are.
    last = settings.train.steps
    tracker.log(last, metrics | ({"train/tokens": points[-1][0]} if points else {}), last)
    tracker.finish("FINISHED", timeout_s=3 * config.tracking.timeout_s)
    settings.run_dir.mkdir(parents=True, exist_ok=True)
    done = {"metrics": metrics, "device_s": metrics[COST], "seconds": metrics[COST], "settings": identify(settings)}
    write_file(settings.run_dir / RESULT, json.dumps(done, indent=1))


def _add_times(config: StudyConfig, parent: TrackedRun, arms: list[Row]) -> None:
    """Give the study the times of arms that it has none of on that kind of device."""
    values: dict[str, float] = {}
    devices: dict[str, str] = {}
    for row in arms:
        for device in ("cuda", "cpu"):
            found = {
                f"time/{device}/{row['arm']}/{kind}/{part}": value
                for kind in KINDS
                for part in PARTS
                if (value := row.get(f"time/{device}/{kind}/{part}"))
            }
            if found and not found.keys() & parent.metrics.keys():
                values |= {name: float(value) for name, value in found.items()}
                devices[f"time/{device}"] = row[f"time/{device}/device"]
    if values:
        log_values(config.tracking_uri, {parent.run_id: values}, step=0)
        set_tags(config.tracking_uri, parent.run_id, devices)
