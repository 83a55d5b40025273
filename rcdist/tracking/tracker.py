"""The interface between a run and where its metrics go: the Tracker protocol."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from rcdist.tracking.jsonl import LogRecord

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]
"""How a run ended: done, failed by itself, stopped from outside."""


@dataclass(frozen=True)
class Row:
    """Hold one value of one metric."""

    name: str
    value: float
    timestamp_ms: int
    step: int


class Tracker(Protocol):
    """Take the records of one run.

    No method raises or waits for a server longer than its timeout: training goes on without tracking.
    """

    @property
    def run_id(self) -> str:
        """Return the id under which a later job continues this run."""

    def log(self, step: int, record: Mapping[str, float], timestamp_ms: int) -> None:
        """Take a record; returns at once. A metric that already has a value at this step keeps it."""

    def log_artifact(self, path: Path) -> bool:
        """Store a file under its name and return whether it worked."""

    def flush(self, timeout_s: float) -> bool:
        """Wait until all records are stored and return whether they are."""

    def finish(self, status: RunStatus, timeout_s: float) -> bool:
        """Flush, close the run with its status, and return whether both worked."""


class Seen:
    """Remember which metric has a value at which step."""

    def __init__(self) -> None:
        self._steps: dict[str, set[int]] = {}

    def add(self, name: str, steps: Iterable[int]) -> None:
        """Remember values that are stored already."""
        self._steps.setdefault(name, set()).update(steps)

    def select_new(self, step: int, record: Mapping[str, float], timestamp_ms: int) -> list[Row]:
        """Return the rows of a record that have no value yet, and remember them."""
        rows = []
        for name, value in record.items():
            steps = self._steps.setdefault(name, set())
            if step not in steps:
                steps.add(step)
                rows.append(Row(name, float(value), timestamp_ms, step))
        return rows


def reconcile(records: Iterable[LogRecord], tracker: Tracker) -> None:
    """Give a tracker every record of a run's log; what it has already is not written twice.

    Call it when a run starts or continues, and at its end: with `MetricsLog.read()`, timestamps are the log's.
    """
    for record in records:
        tracker.log(record.step, record.metrics, record.timestamp_ms)
