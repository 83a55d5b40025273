"""One process of the resizing tests: train and save, or read what another number of processes saved and go on."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from rcdist.checkpoint.files import write_rank
from rcdist.checkpoint.resize import converted
from rcdist.config import JobConfig
from rcdist.data.loader import MicroBatch
from rcdist.train.engine import Engine
from tests.train.zero_worker import SEQ_LEN, WINDOWS, build_model, micro_batch, windows

SAVED_AT, LAST = 4, 8


def share(step: int, rank: int, world_size: int) -> list[MicroBatch]:
    """Return this rank's windows of a step, filled up with windows of no weight."""
    rows = list(windows(step))[rank::world_size]
    batches = [micro_batch(row[None]) for row in rows]
    while len(batches) < -(-WINDOWS // world_size):
        padding = micro_batch(windows(step)[:1])
        padding.weights_BT.zero_()
        batches.append(padding)
    return batches


def train(engine: Engine, first: int) -> list[float]:
    """Train from a step to the last one and return the losses."""
    losses = []
    for step in range(first, LAST):
        batches = share(step, dist.get_rank(), dist.get_world_size())
        result = engine.train_step(batches, WINDOWS * SEQ_LEN, learning_rate=3e-3, weight_decay=0.1)
        assert result.applied
        losses.append(result.loss_nats)
    return losses


def run(config: JobConfig, folder: Path, saves: bool) -> dict[str, list[float]]:
    """Train on; `saves`: from the start, saving on the way, and once more from what was saved, in the same engine."""
    world_size = dist.get_world_size()
    engine = Engine(build_model(config), config, world_size=world_size, device=torch.device("cpu"))
    if not saves:
        if config.train.zero_stage == 0:
            engine.restore(folder)
        else:
            with converted(folder, node=0, is_first_of_node=dist.get_rank() == 0) as universal:
                engine.restore(universal, is_universal=True)
        return {"went on": train(engine, SAVED_AT)}
    for step in range(SAVED_AT):
        batches = share(step, dist.get_rank(), world_size)
        engine.train_step(batches, WINDOWS * SEQ_LEN, learning_rate=3e-3, weight_decay=0.1)
    folder.mkdir(parents=True, exist_ok=True)
    write_rank(folder, dist.get_rank(), engine.snapshot())
    dist.barrier()
    unbroken = train(engine, SAVED_AT)
    engine.restore(folder)
    return {"unbroken": unbroken, "went back": train(engine, SAVED_AT)}


def run_each(jobs: dict[str, JobConfig], root: str, saves: bool) -> dict[str, Any]:
    """Run every job in one process of a group; return the losses under its name and the number of processes."""
    return {f"{name} {dist.get_world_size()}": run(config, Path(root) / name, saves) for name, config in jobs.items()}
