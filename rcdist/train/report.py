"""Receive the workers' records on Ray Train's controller: write them down and retire old checkpoints."""

from pathlib import Path
from typing import Any

from ray.train import Checkpoint, UserCallback

from rcdist.tracking.jsonl import MetricsLog
from rcdist.train.checkpoint import prune_checkpoints


class RecordKeeper(UserCallback):
    """Append rank 0's record to metrics.jsonl and keep the newest checkpoints and the best.

    It runs in the controller, which Ray places on the driver's node, and outlives the workers. The driver reads the
    file and passes it on to MLflow: nothing here waits for a server.

    Args:
        run_dir: folder of the run.
        keep_latest: newest checkpoints that are kept.
        keep_every_steps: checkpoints of its multiples are kept for good.
    """

    def __init__(self, run_dir: Path, keep_latest: int, keep_every_steps: int | None) -> None:
        self._run_dir = run_dir
        self._kept = keep_latest, keep_every_steps

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None) -> None:
        """Keep one record; Ray calls it once all workers have reported and the checkpoint is in storage."""
        record = dict(metrics[0])
        step, timestamp_ms = record.pop("step"), record.pop("timestamp_ms")
        MetricsLog(self._run_dir).append(step, timestamp_ms, record)
        if checkpoint is not None:
            prune_checkpoints(self._run_dir, *self._kept)
