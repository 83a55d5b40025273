"""What a run is between two steps, besides tensors: restored from a checkpoint at the start, or to go back."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray.train
import torch.distributed as dist

from rcdist.config import JobConfig
from rcdist.errors import DivergedError
from rcdist.tracking.jsonl import MetricsLog
from rcdist.tracking.ledger import Ledger
from rcdist.train.checkpoint import (
    Manifest,
    find_newest_valid,
    read_manifest,
)
from rcdist.train.divergence import SpikeState
from rcdist.train.engine import Engine
from rcdist.train.events import share, tell
from rcdist.train.universal import converted

RECORDS_IN_FLIGHT = 8
"""More records than can be on their way from a worker to the controller's log at one time."""


@dataclass
class LoopState:
    """Hold what must survive besides tensors and ledger; a checkpoint's manifest carries it.

    Attributes:
        step: optimizer steps done.
        skipped_steps: of these, steps whose update was skipped.
        cursor: global windows consumed.
        spikes: what the guard against jumps of the loss remembers.
        records: records since the checkpoint before, and a few more: a log that was cut off is completed from them.
    """

    step: int = 0
    skipped_steps: int = 0
    cursor: int = 0
    spikes: SpikeState = field(default_factory=SpikeState)
    records: list[dict[str, float]] = field(default_factory=list)


def restore(
    payload: dict[str, Any], config: JobConfig, engine: Engine, ledger: Ledger, state: LoopState
) -> Path | None:
    """Continue from the newest valid checkpoint of this run, also after a restart of the workers by Ray.

    A run without one starts from `checkpoint.resume_from`, if there is that.
    """
    folder: Path | None = None
    if dist.get_rank() == 0:
        found = find_newest_valid(config.run_dir)
        if found:
            folder = found[0]
            for damage in found[1]:
                print(f"skipped: {damage}", flush=True)
        else:
            folder = payload["resume_from"]
    folder = share(folder)
    if folder is None:
        return None
    manifest = _load(engine, folder)
    if dist.get_rank() == 0 and folder.parent == config.run_dir:
        # Nobody else writes now: the workers before this one are gone, and the controller waits for a report.
        MetricsLog(config.run_dir).complete(manifest.records)
    state.step, state.cursor, state.skipped_steps = manifest.step, manifest.cursor, manifest.skipped_steps
    vars(state.spikes).update(manifest.spikes)
    ledger.load_state(manifest.ledger)
    return folder


def go_back(config: JobConfig, engine: Engine, state: LoopState) -> None:
    """Take weights and optimizer of the newest valid checkpoint; steps and data go on, so that what led here is past.

    Raises:
        DivergedError: there is no checkpoint yet.
    """
    folder = share(_newest_checkpoint(config.run_dir))
    if folder is None:
        raise DivergedError(
            "divergence.max_skipped",
            config.divergence.max_skipped,
            f"one more step was skipped by step {state.step}, and there is no checkpoint to go back to",
            "Lower optimizer.learning_rate, or set checkpoint.every_steps",
        )
    _load(engine, folder)
    tell(config.run_dir, state.step, "went back", f"weights and optimizer are those of {folder.name}")


def _load(engine: Engine, folder: Path) -> Manifest:
    """Read tensors, whatever number of workers wrote them."""
    manifest = read_manifest(folder)
    # Without ZeRO every worker holds, and one has written, the whole state.
    if manifest.zero_stage == 0 or manifest.world_size == dist.get_world_size():
        engine.restore(folder)
    else:
        with converted(folder, is_first_of_node=ray.train.get_context().get_local_rank() == 0) as universal:
            engine.restore(universal, is_universal=True)
    return manifest


def _newest_checkpoint(run_dir: Path) -> Path | None:
    found = find_newest_valid(run_dir) if dist.get_rank() == 0 else None
    return found[0] if found else None
