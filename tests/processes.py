"""Run a function in every process of a real torch.distributed group."""

import faulthandler
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

Backend = Literal["gloo", "nccl"]


def run_group(
    work: Callable[..., dict[Any, Any]], world_size: int, *arguments: Any, backend: Backend = "gloo"
) -> dict[Any, Any]:
    """Call `work(*arguments)` in each of `world_size` new processes and return what it returned on rank 0.

    Args:
        work: a function of a module; it and everything it takes and returns is pickled.
        world_size: processes of the group.
        arguments: the same for every rank.
        backend: gloo on CPU with one thread a process; nccl with the GPU of the rank's number.
    """
    with tempfile.TemporaryDirectory() as folder, mp.get_context("spawn").Manager() as manager:
        results = manager.dict()
        store = str(Path(folder) / "store")
        mp.spawn(_run_rank, args=(world_size, backend, store, work, arguments, results), nprocs=world_size)
        return dict(results)


def _run_rank(
    rank: int,
    world_size: int,
    backend: Backend,
    store: str,
    work: Callable[..., dict[Any, Any]],
    arguments: tuple[Any, ...],
    results: Any,
) -> None:
    faulthandler.enable()  # a crash in native code says where Python was
    os.environ["DS_ACCELERATOR"] = "cuda" if backend == "nccl" else "cpu"
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": str(rank)}
    device = torch.device("cuda", rank) if backend == "nccl" else None
    if device:
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(1)
    dist.init_process_group(
        backend, store=dist.FileStore(store, world_size), rank=rank, world_size=world_size, device_id=device
    )
    outcome = work(*arguments)
    if rank == 0:
        results.update(outcome)
    dist.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    # DeepSpeed keeps its groups, also destroyed ones: gloo's threads run on, and the C++ runtime aborts a process that
    # takes its interpreter down around them, once in some twenty times.
    os._exit(0)
