"""Inject a fault into a worker, for tests and rcdist/chaos; does nothing unless RCDIST_FAULT names one."""

import math
import os
import signal
from dataclasses import dataclass, replace
from pathlib import Path

from rcdist.data.loader import MicroBatch
from rcdist.errors import ConfigError

VARIABLE = "RCDIST_FAULT"
PLACES = {"kill": ("forward", "optimizer", "saving"), "nan": ("batch",), "spike": ("batch",)}
"""Where each kind of fault can happen."""
_SPIKE = 50.0


@dataclass(frozen=True)
class InjectedFault:
    """Name a fault: `kind:place:step[-last][:rank]`, e.g. `kill:optimizer:7`, `spike:batch:20-28`.

    Attributes:
        kind: kill: SIGKILL to the worker, once; nan, spike: the batch's loss is not finite, or 50 times too high.
        place: before the forward pass, in the optimizer's step, after the files of a checkpoint are written; or batch.
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
    """Make the named fault happen in this worker.

    Args:
        run_dir: of the run; a file in it marks a kill that has happened, so that it is not repeated after the restart.
        rank: of this worker.
    """

    def __init__(self, run_dir: Path, rank: int) -> None:
        text = os.environ.get(VARIABLE)
        fault = InjectedFault.parse(text) if text else None
        self._fault = fault if fault is not None and fault.rank == rank else None
        self._marker = run_dir / "fault-happened"

    def kill_at(self, place: str, step: int) -> None:
        """Kill this process if the fault names this place and step."""
        fault = self._fault
        if fault is None or fault.kind != "kill" or (fault.place, fault.first) != (place, step):
            return
        try:
            self._marker.touch(exist_ok=False)
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)

    def change(self, batches: list[MicroBatch], step: int) -> list[MicroBatch]:
        """Return the micro-batches of a step, with their loss weights changed if the fault names it."""
        fault = self._fault
        if fault is None or fault.place != "batch" or not fault.first <= step <= fault.last:
            return batches
        factor = math.nan if fault.kind == "nan" else _SPIKE
        return [replace(batch, weights_BT=batch.weights_BT * factor) for batch in batches]
