"""Log what happens to a run besides its metrics: the one list of events, and the file they are in."""

import json
import time
from enum import StrEnum
from functools import cache
from pathlib import Path

import torch.distributed as dist

from rcdist.storage import LineFile, say

EVENTS = "events.jsonl"
"""File of a run with its events, one JSON object per line; MLflow gets it when the job ends."""


class Event(StrEnum):
    """Name everything that is logged as an event."""

    STEP_SKIPPED = "step_skipped"
    """The update of a step was not applied: loss or gradient not finite, or the loss a jump."""
    ROLLED_BACK = "rolled_back"
    """Weights and optimizer were taken back to a checkpoint."""
    DIVERGED = "diverged"
    """Training ends because of its loss."""
    PREEMPTION_NOTICE = "preemption_notice"
    """A node is about to be taken away."""
    CHECKPOINT_SKIPPED = "checkpoint_skipped"
    """A checkpoint was not saved because the storage is full, or cannot be written."""


def log_event(run_dir: Path, step: int, event: Event, detail: str) -> None:
    """Print an event and append it to the file; rank 0 does, the others do nothing."""
    if dist.get_rank() == 0:
        say(f"step {step}: {event}: {detail}")
        line = json.dumps({"time": time.time(), "step": step, "event": event, "detail": detail})
        _file_of(run_dir).append(line)


def flush_events(run_dir: Path) -> None:
    """Write events that wait for room on the disk, if there is some now."""
    _file_of(run_dir).flush()


@cache
def _file_of(run_dir: Path) -> LineFile:
    return LineFile(run_dir / EVENTS)
