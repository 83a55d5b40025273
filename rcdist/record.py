"""The record of a run: metrics.jsonl first, MLflow brought up to it, run.json saying how far that got."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from rcdist.checkpoint.find import Found
from rcdist.config import JobConfig
from rcdist.storage import read_json, try_write
from rcdist.tracking.gauges import Gauges
from rcdist.tracking.jsonl import LogRecord, MetricsLog
from rcdist.tracking.mlflow import start_or_continue
from rcdist.tracking.tracker import RunStatus, Tracker, reconcile
from rcdist.train.events import EVENTS

_RUN_FILE = "run.json"
_SUMMARY = "summary.txt"

OnRecord = Callable[[LogRecord], None]
"""Called with each new record of a run, on the driver, in the order of the steps."""


def is_complete(run_dir: Path) -> bool:
    """Say whether MLflow has everything that metrics.jsonl has of a finished run, and that it is finished."""
    return bool(_read_state(run_dir).get("is_complete"))


def mlflow_run_id(run_dir: Path) -> str | None:
    """Return the id of the MLflow run that a run's folder goes with, None if it has none yet."""
    found: str | None = _read_state(run_dir).get("mlflow_run_id")
    return found


class RunRecord:
    """Keep what a run says of itself: open it when the run starts, poll it while it trains, close it however it ends.

    Args:
        config: the run.
        resume: the checkpoint that it continues from.
        facts: what describes the run besides its settings, nested; it becomes parameters in MLflow.
        on_record: called with each new record.
        tags: besides the plan.
        connect: gives the tracker; for tests.

    Raises:
        ConfigError: the tracking server does not answer or refuses.
    """

    def __init__(
        self,
        config: JobConfig,
        resume: Found | None,
        facts: Mapping[str, Any],
        on_record: OnRecord | None = None,
        tags: Mapping[str, str] | None = None,
        connect: Callable[..., Tracker] = start_or_continue,
    ) -> None:
        self._config, self._run_dir, self._on_record = config, config.run_dir, on_record
        self._passed_on: set[tuple[int, int]] = set()
        self.log = MetricsLog(self._run_dir)
        is_own = resume is not None and resume.folder.parent == self._run_dir
        # What lies after the checkpoint was lost; what was on its way when something was killed is in the checkpoint.
        self.log.truncate_after(resume.manifest.step if resume and is_own else 0)
        if resume and is_own:
            self.log.complete(resume.manifest.state.records)
        self.tracker = connect(
            config.tracking_uri,
            config.tracking.experiment,
            config.name,
            mlflow_run_id(self._run_dir),
            config=config.model_dump(mode="json"),
            facts=facts,
            tags={"plan": config.reservoir.plan, **(tags or {})},
            timeout_s=config.tracking.timeout_s,
        )
        self._write_state(is_complete=False)
        labels = {"run": config.name, "experiment": config.tracking.experiment, "plan": config.reservoir.plan}
        self._gauges = Gauges(labels | {"sweep": (tags or {}).get("sweep/name", "")})
        reconcile(self.log.read_new(), self.tracker)

    def poll(self) -> None:
        """Pass on the records that have come since the last call."""
        self._gauges.refresh()
        for record in self.log.read_new():
            self.tracker.log(record.step, record.metrics, record.timestamp_ms)
            self._gauges.set({**record.metrics, **self._progress(record)})
            # When workers were replaced the log is read from its start again, up to where it was cut off.
            known = (record.step, record.timestamp_ms)
            if self._on_record is not None and known not in self._passed_on:
                self._passed_on.add(known)
                self._on_record(record)

    def _progress(self, record: LogRecord) -> dict[str, float]:
        """Return what a dashboard needs besides the metrics of a record."""
        cost = self._config.cost
        budgets = {"cost/budget_usd": cost.budget_usd, "cost/budget_device_s": cost.budget_device_s}
        return {
            "run/active": 1.0,
            "run/step": float(record.step),
            "run/steps": float(self._config.train.steps),
            "run/record_time_s": record.timestamp_ms / 1000,
        } | {name: budget for name, budget in budgets.items() if budget is not None}

    def amend_last(self, metrics: Mapping[str, float]) -> None:
        """Add metrics to the last record."""
        last = self.log.read()[-1]
        self.log.append(last.step, last.timestamp_ms, {**last.metrics, **metrics})
        reconcile(self.log.read(), self.tracker)

    def close(self, status: RunStatus, summary: str | None = None) -> None:
        """Give MLflow the rest, artifacts and status; a full disk costs files, never the status.

        Args:
            status: how the run ended.
            summary: table for people, kept as summary.txt.
        """
        self._gauges.close()
        files = [self._run_dir / EVENTS, self._run_dir / _SUMMARY]
        if summary is not None:
            try_write(files[-1], summary + "\n")
        for file in files:
            if file.exists():
                self.tracker.log_artifact(file)
        is_stored = self.tracker.finish(status, timeout_s=3 * self._config.tracking.timeout_s)
        self._write_state(is_complete=is_stored and status == "FINISHED")

    def _write_state(self, *, is_complete: bool) -> None:
        state = {"mlflow_run_id": self.tracker.run_id, "is_complete": is_complete}
        try_write(self._run_dir / _RUN_FILE, json.dumps(state))


def newest_metrics(records: Iterable[LogRecord]) -> dict[str, float]:
    """Return the newest value of each metric."""
    newest: dict[str, float] = {}
    for record in records:
        newest.update(record.metrics)
    return newest


def _read_state(run_dir: Path) -> dict[str, Any]:
    return read_json(run_dir / _RUN_FILE)
