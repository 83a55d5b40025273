"""The record of a run: metrics.jsonl first, completed from the checkpoint, and MLflow brought up to it."""

import json
from pathlib import Path
from typing import Any

from rcdist.config import JobConfig
from rcdist.data.prepare import PreparedData
from rcdist.data.shards import TokenCorpus
from rcdist.data.sources import read_documents, resolve_source
from rcdist.data.tokenizer import load_tokenizer
from rcdist.data.yardsticks import measure_yardsticks
from rcdist.model.cost import ParameterCounts
from rcdist.tracking.jsonl import MetricsLog
from rcdist.tracking.mlflow import start_or_continue
from rcdist.tracking.prices import PriceRow
from rcdist.tracking.progress import Summary, format_summary
from rcdist.tracking.provenance import redact
from rcdist.tracking.tracker import RunStatus, Tracker, reconcile
from rcdist.train.checkpoint import Manifest, find_checkpoints

_RUN_FILE = "run.json"


def read_record_state(run_dir: Path) -> dict[str, Any]:
    """Return what `write_record_state` wrote last; empty for a new run."""
    path = run_dir / _RUN_FILE
    state: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return state


def write_record_state(run_dir: Path, run_id: str, *, is_complete: bool) -> None:
    """Remember the MLflow run, and whether MLflow has everything that metrics.jsonl has and the true status."""
    (run_dir / _RUN_FILE).write_text(json.dumps({"mlflow_run_id": run_id, "is_complete": is_complete}))


def complete_record(config: JobConfig, manifest: Manifest) -> None:
    """Give MLflow what it missed of a run that has all its steps: it was away, or the driver was killed at the end."""
    state = read_record_state(config.run_dir)
    if state.get("is_complete"):
        return
    log = MetricsLog(config.run_dir)
    log.complete(manifest.records)
    tracker = start_or_continue(
        config.tracking_uri,
        config.tracking.experiment,
        config.name,
        state.get("mlflow_run_id"),
        config=config.model_dump(mode="json"),
        facts={},
        tags={"plan": config.reservoir.plan},
        timeout_s=config.tracking.timeout_s,
    )
    reconcile(log.read(), tracker)
    is_stored = tracker.finish("FINISHED", timeout_s=3 * config.tracking.timeout_s)
    write_record_state(config.run_dir, tracker.run_id, is_complete=is_stored)


def append_yardsticks(config: JobConfig, data: PreparedData, log: MetricsLog) -> None:
    """Measure the yardsticks and write them into the last record, beside the final evaluation."""
    last = log.read()[-1]
    source = resolve_source(config.data.validation, config.data, is_train=False)
    vocab_size = load_tokenizer(Path(data.tokenizer_dir)).vocab_size
    yardsticks = measure_yardsticks(
        TokenCorpus(data.train.path), TokenCorpus(data.validation.path), read_documents(source), vocab_size
    )
    log.append(last.step, last.timestamp_ms, {**last.metrics, **yardsticks})


def summarise(
    config: JobConfig,
    status: RunStatus,
    counts: ParameterCounts,
    price: PriceRow,
    tracker: Tracker,
    log: MetricsLog,
    wall_s: float,
) -> str:
    """Draw the table of a run that has ended, from the newest value of each metric."""
    records = log.read()
    newest: dict[str, float] = {}
    for record in records:
        newest.update(record.metrics)
    checkpoints = find_checkpoints(config.run_dir)
    return format_summary(
        Summary(
            run=config.name,
            status=status,
            plan=config.reservoir.plan,
            **vars(counts),
            step=records[-1].step if records else 0,
            num_steps=config.train.steps,
            wall_s=wall_s,
            checkpoint=str(checkpoints[0]) if checkpoints else None,
            price=f"{price.usd_per_device_hour:g} USD per device hour ({price.name}, {price.market})",
            tracking_uri=redact(config.tracking_uri),
            run_id=tracker.run_id,
            metrics=newest,
        )
    )
