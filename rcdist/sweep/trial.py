"""One trial, in the process that Ray Tune gives it: a run, watched, and stopped when its lower bound is dominated."""

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from rcdist.config import JobConfig
from rcdist.config.cli import config_from_dict
from rcdist.errors import BudgetError, DominatedError, HeldError, RcdistError
from rcdist.sweep.stopper import Curve, find_dominating, lower_bound
from rcdist.sweep.trials import OUTCOME, Journal, Status, Trial, read_trial, searched

_HELD_FOR_S = 60.0
"""Seconds that processes of a killed job may take to let go of a run."""


@dataclass(frozen=True)
class Search:
    """Hold what every trial of a search is told.

    Attributes:
        folder: of the search.
        objectives: names.
        stop_dominated: whether trials may be stopped.
        parent_run_id: MLflow run of the search.
        budget_usd, budget_device_s: of all trials together.
    """

    folder: str
    objectives: tuple[str, ...]
    stop_dominated: bool
    parent_run_id: str
    budget_usd: float | None
    budget_device_s: float | None

    def read_trials(self) -> list[Trial]:
        """Return what the driver has written down of all trials by now."""
        return Journal(Path(self.folder) / "trials.jsonl").trials


def run_trial(proposal: Mapping[str, Any], search: Search) -> None:
    """Run one trial and report its end to Tune; whatever happens to it is an end, and stops no other trial.

    Args:
        proposal: the `trial` as JSON, the `settings` of its run as YAML, and `here`: whether it trains in this process.
        search: what all trials share.
    """
    from ray import tune

    trial = read_trial(json.loads(proposal["trial"]))
    try:
        ended = _run(trial, proposal, search, tune.report)
    except RcdistError as error:
        ended = trial.ended(status="failed", reason=str(error))
    except Exception as error:
        logging.getLogger("rcdist").exception("trial %d", trial.number)
        ended = trial.ended(status="failed", reason=" ".join(f"{type(error).__name__}: {error}".split())[:500])
    tune.report({OUTCOME: json.dumps(asdict(ended))})


def _run(
    trial: Trial,
    proposal: Mapping[str, Any],
    search: Search,
    report: Callable[[dict[str, Any]], None],
) -> Trial:
    # Here, not above: where the run trains in this process, torch must find the environment that it sets.
    from rcdist.launch import run
    from rcdist.tracking.mlflow_runs import log_values
    from rcdist.train.control import request_stop, write_stop

    config = _within_budget(config_from_dict(yaml.safe_load(proposal["settings"])), search)
    quality, began = search.objectives[0], time.monotonic()
    curve: list[tuple[float, float]] = []

    def watch(record: Any) -> None:
        if quality not in record.metrics:
            return
        curve.append((float(record.step * config.train.global_batch_tokens), record.metrics[quality]))
        report({"step": record.step, quality: record.metrics[quality]})
        if search.stop_dominated and trial.repeats is None and record.step < config.train.steps:
            found = find_reason_to_stop(trial, curve, search.read_trials(), search)
            if found is not None:
                write_stop(config.run_dir, found)
                request_stop(config.run_dir)

    tags = {
        "mlflow.parentRunId": search.parent_run_id,
        "sweep/trial": str(trial.number),
        "sweep/name": Path(search.folder).name,
    }
    deadline = time.monotonic() + _HELD_FOR_S
    while True:
        try:
            result = run(config, on_record=watch, tags=tags, here=bool(proposal["here"]))
            break
        except HeldError:
            if time.monotonic() > deadline:
                raise
            time.sleep(1.0)
    if result.error is None and result.mlflow_run_id:
        seen = {**result.metrics, **trial.costs}
        values = {f"sweep/objective/{name}": seen[name] for name in search.objectives}
        log_values(config.tracking_uri, {result.mlflow_run_id: values}, step=result.step)
    error = result.error
    return trial.ended(
        status=_status(error),
        reason="" if error is None else str(error),
        qualities={name: value for name, value in result.metrics.items() if name.startswith("eval/")},
        curve=read_curve(config, quality),
        used_s=result.ledger.device_s,
        used_usd=result.ledger.usd,
        wall_s=time.monotonic() - began,
        mlflow_run_id=result.mlflow_run_id,
    )


def _status(error: RcdistError | None) -> Status:
    if error is None:
        return "finished"
    if isinstance(error, DominatedError):
        return "stopped"
    return "paused" if isinstance(error, BudgetError) else "failed"


def read_curve(config: JobConfig, quality: str) -> list[tuple[float, float]]:
    """Return the whole curve of a run from its log: also of one that went on from a checkpoint in a new process."""
    from rcdist.tracking.jsonl import MetricsLog

    tokens = config.train.global_batch_tokens
    records = MetricsLog(config.run_dir).read()
    return [(float(r.step * tokens), r.metrics[quality]) for r in records if quality in r.metrics]


def find_reason_to_stop(trial: Trial, curve: Curve, trials: Sequence[Trial], search: Search) -> DominatedError | None:
    """Return why a running trial is not worth its cost any more, None while it may still reach the front."""
    finished = [other for other in searched(trials) if other.number != trial.number]
    bound = lower_bound(curve, [other.curve for other in finished])
    if bound is None:
        return None
    cost = trial.costs[search.objectives[1]] if len(search.objectives) > 1 else None
    points = [other.point(search.objectives) for other in finished]
    found = find_dominating(bound, cost, points)
    if found is None:
        return None
    by = finished[points.index(found)]
    return DominatedError(
        search.objectives[0],
        round(curve[-1][1], 4),
        f"after {curve[-1][0]:,.0f} tokens it can reach {bound:.4f} at best, and trial {by.number} has {found[0]:.4f} "
        "for no more cost",
        "Set sweep.stop_dominated=false to train it to the end",
    )


def _within_budget(config: JobConfig, search: Search) -> JobConfig:
    """Give a run what is left of the search's budgets, unless its own are smaller."""
    updates, trials = {}, search.read_trials()
    for name, used in (("budget_usd", "used_usd"), ("budget_device_s", "used_s")):
        total, own = getattr(search, name), getattr(config.cost, name)
        if total is not None:
            left = max(total - sum(getattr(other, used) for other in trials), 1e-9)
            updates[name] = left if own is None else min(left, own)
    return config.model_copy(update={"cost": config.cost.model_copy(update=updates)})
