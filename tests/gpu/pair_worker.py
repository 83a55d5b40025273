"""One process of the tests of two GPUs: train, save, go on in another number, and count what travels."""

from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist

from rcdist.checkpoint.files import write_rank
from rcdist.checkpoint.resize import converted
from tests.checkpoint.resize_worker import share
from tests.train.zero_worker import SEQ_LEN, WINDOWS, build_model, job

SAVED_AT, SAVED_AGAIN_AT, LAST = 4, 6, 8
Part = Literal["all", "goes on", "goes on again"]


def run_each(stages: list[int], root: str, part: Part) -> dict[str, Any]:
    """Run a part of each stage's training in one process of a group and return what it measured.

    Args:
        part: all: from the start to the last step, saving on the way. goes on: from what was saved, saving again. goes
            on again: from that.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    return {
        f"{stage} {world_size} {part}": _run(stage, rank, world_size, Path(root) / str(stage), part) for stage in stages
    }


def _run(stage: int, rank: int, world_size: int, folder: Path, part: Part) -> dict[str, Any]:
    from rcdist.train.engine import Engine
    from rcdist.train.wire import WireMeter

    config = job(stage, "bf16")
    model = build_model(config)
    wire = WireMeter(model.bank.buffers())
    losses, sent = {}, []
    first = {"all": 0, "goes on": SAVED_AT, "goes on again": SAVED_AGAIN_AT}[part]
    last = SAVED_AGAIN_AT if part == "goes on" else LAST
    saves = {("all", 2, SAVED_AT), ("goes on", 1, SAVED_AGAIN_AT)}
    with wire.installed():
        engine = Engine(model, config, world_size=world_size, device=torch.device("cuda", rank))
        if first:
            source = folder / f"step-{first}"
            if stage == 0:
                engine.restore(source)
            else:
                with converted(source, node=0, is_first_of_node=rank == 0) as universal:
                    engine.restore(universal, is_universal=True)
        for step in range(first, last):
            wire.take()
            batches = share(step, rank, world_size)
            result = engine.train_step(batches, WINDOWS * SEQ_LEN, learning_rate=3e-3, weight_decay=0.1)
            losses[step] = result.loss_nats
            sent.append(wire.take().trained)
            if (part, world_size, step + 1) in saves:
                _save(engine, folder / f"step-{step + 1}", rank)
    num_trained = sum(p.numel() for p in model.parameters()) if stage < 3 else 0
    return {"losses": losses, "sent": sent, "num_trained": num_trained}


def _save(engine: Any, folder: Path, rank: int) -> None:
    contents = engine.snapshot()
    engine.wait_for_snapshot()
    folder.mkdir(parents=True, exist_ok=True)
    write_rank(folder, rank, contents)
    dist.barrier()
