"""Inject a fault into a worker, for tests and rcdist/chaos; does nothing unless RCDIST_FAULT names one."""

import contextlib
import errno
import math
import os
import signal
from dataclasses import dataclass, replace
from pathlib import Path

from rcdist.data.loader import MicroBatch
from rcdist.errors import ConfigError

VARIABLE = "RCDIST_FAULT"
PLACES = {
    "kill": ("forward", "optimizer", "shard", "saving", "upload", "rollback", "restore", "resize"),
    "full": ("shard",),
    "nan": ("batch",),
    "spike": ("batch",),
}
"""Where each kind of fault can happen."""
_SPIKE = 50.0


@dataclass(frozen=True)
class InjectedFault:
    """Name a fault: `kind:place:step[-last][:rank]`, e.g. `kill:optimizer:7`, `spike:batch:20-28`, or several by comma.

    Attributes:
        kind: kill: SIGKILL to the worker, once; full: the disk has no room; nan, spike: the batch's loss is not finite,
            or 50 times too high.
        place: before the forward pass, in the optimizer's step, in the middle of a checkpoint's file, after all of them
            are written, after one is sent to a bucket, when training goes back to a checkpoint, before one is read, as
            it is or converted; or batch.
        first: step at which it happens, counted from 1.
        last: last such step; equal to first for kill.
        rank: worker it happens to.
    """

    kind: str
    place: str
    first: int
    last: int
    rank: int = 0

    @classmethod
    def parse(cls, text: str) -> "InjectedFault":
        """Read the short form.

        Raises:
            ConfigError: not of that form.
        """
        parts = text.split(":")
        try:
            kind, place, steps, *rest = parts
            first, _, last = steps.partition("-")
            fault = cls(kind, place, int(first), int(last or first), *map(int, rest))
        except (ValueError, TypeError):
            fault = cls("", "", 0, 0)
        if fault.place not in PLACES.get(fault.kind, ()):
            known = ", ".join(f"{kind}:{place}" for kind, places in PLACES.items() for place in places)
            raise ConfigError(VARIABLE, text, f"not one of {known} with :step[-last][:rank]", "E.g. kill:optimizer:7")
        return fault


class FaultInjector:
    """Make the named faults happen in this worker.

    Args:
        run_dir: of the run; a file in it marks each kill that has happened, so that it is not repeated afterwards.
        rank: of this worker.
    """

    def __init__(self, run_dir: Path, rank: int) -> None:
        parsed = [InjectedFault.parse(text) for text in os.environ.get(VARIABLE, "").split(",") if text]
        self._faults = {number: fault for number, fault in enumerate(parsed) if fault.rank == rank}
        self._run_dir = run_dir

    def strike(self, place: str, step: int) -> None:
        """Kill this process, or let its disk be full, if a fault names this place and step.

        Raises:
            OSError: the disk is full.
        """
        for number, fault in self._faults.items():
            if fault.place != place or not fault.first <= step <= fault.last:
                continue
            if fault.kind == "full":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            with contextlib.suppress(FileExistsError):
                (self._run_dir / f"fault-{number}-happened").touch(exist_ok=False)
                os.kill(os.getpid(), signal.SIGKILL)

    def change(self, batches: list[MicroBatch], step: int) -> list[MicroBatch]:
        """Return the micro-batches of a step, with their loss weights changed if a fault names it."""
        for fault in self._faults.values():
            if fault.place == "batch" and fault.first <= step <= fault.last:
                factor = math.nan if fault.kind == "nan" else _SPIKE
                batches = [replace(batch, weights_BT=batch.weights_BT * factor) for batch in batches]
        return batches
