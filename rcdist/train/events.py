"""Tell what happened to a run, and let all ranks know what rank 0 knows."""

import json
import time
from pathlib import Path
from typing import Any

import torch.distributed as dist

EVENTS = "events.jsonl"
"""File of a run with what was skipped, taken back or ended early, and why."""


def tell(run_dir: Path, step: int, what: str, why: str) -> None:
    """Write an event down, on rank 0: the log shows it, and MLflow gets the file when the job ends."""
    if dist.get_rank() == 0:
        print(f"step {step}: {what}: {why}", flush=True)
        with (run_dir / EVENTS).open("a") as file:
            file.write(json.dumps({"time": time.time(), "step": step, "event": what, "detail": why}) + "\n")


def share(value: Any) -> Any:
    """Return rank 0's value on every rank."""
    held = [value]
    dist.broadcast_object_list(held)
    return held[0]
