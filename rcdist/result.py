"""What a run comes to: its result for programs, and the table of it for people."""

from dataclasses import dataclass
from pathlib import Path

from rcdist.checkpoint.find import find_checkpoints
from rcdist.config import JobConfig
from rcdist.errors import RcdistError
from rcdist.model.cost import count_parameters
from rcdist.record import newest_metrics
from rcdist.tracking.jsonl import MetricsLog
from rcdist.tracking.ledger import Ledger
from rcdist.tracking.prices import PriceRow
from rcdist.tracking.progress import format_duration, format_summary
from rcdist.tracking.provenance import redact
from rcdist.tracking.tracker import RunStatus
from rcdist.train.meter import read_ledger


@dataclass(frozen=True)
class RunResult:
    """Hold how a run ended.

    Attributes:
        status: FINISHED: all steps are done; FAILED; KILLED: a budget is used up.
        step: optimizer steps done.
        metrics: the newest value of each metric.
        checkpoint: the newest checkpoint.
        ledger: what the run has used, over all its jobs.
        mlflow_run_id: of the run in MLflow.
        error: why it is not FINISHED: a budget, divergence, retries, a full storage.
    """

    status: RunStatus
    step: int
    metrics: dict[str, float]
    checkpoint: Path | None
    ledger: Ledger
    mlflow_run_id: str | None
    error: RcdistError | None = None


def read_result(
    config: JobConfig, status: RunStatus, run_id: str | None, error: RcdistError | None = None
) -> RunResult:
    """Return what the run's folder says of how it ended."""
    records, checkpoints = MetricsLog(config.run_dir).read(), find_checkpoints(config.run_dir)
    return RunResult(
        status=status,
        step=records[-1].step if records else 0,
        metrics=newest_metrics(records),
        checkpoint=checkpoints[0] if checkpoints else None,
        ledger=read_ledger(config.run_dir),
        mlflow_run_id=run_id,
        error=error,
    )


def format_result(config: JobConfig, price: PriceRow, result: RunResult, wall_s: float) -> str:
    """Draw the table at the end of a run."""
    counts = count_parameters(config.architecture)
    head = {
        "run": f"{config.name} ({result.status})",
        "plan": config.reservoir.plan,
        "parameters stored": f"{counts.stored:,}",
        "  trained": f"{counts.trained:,}",
        "  frozen, unique": f"{counts.frozen_unique:,}",
        "  frozen, as applied": f"{counts.frozen:,}",
        "steps": f"{result.step} of {config.train.steps}",
        "wall time": format_duration(wall_s),
    }
    foot = {
        "price": f"{price.usd_per_device_hour:g} USD per device hour ({price.name}, {price.market})",
        "checkpoint": str(result.checkpoint or "none"),
        "MLflow": redact(config.tracking_uri),
        "MLflow run": result.mlflow_run_id or "none",
    }
    return format_summary(head, result.metrics, foot)
