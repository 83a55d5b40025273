"""Log which windows of the corpus each worker read in each step, if tracking.log_samples is set."""

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rcdist.storage import LineFile

_FOLDER = "samples"


class SampleLog:
    """Append what one worker reads; a worker that Ray starts again opens a file of its own.

    Args:
        run_dir: of the run.
        attempt: number that all workers started together have, and later ones exceed.
        rank: of this worker.
    """

    def __init__(self, run_dir: Path, attempt: int, rank: int) -> None:
        folder = run_dir / _FOLDER
        folder.mkdir(exist_ok=True)
        self._file = LineFile(folder / f"{attempt}-rank-{rank}.jsonl")

    def append(self, step: int, samples: Iterable[tuple[int, int]]) -> None:
        """Write the (epoch, window) pairs of a finished step through to the file."""
        self._file.append(json.dumps({"step": step, "time": time.time(), "samples": list(samples)}))


@dataclass(frozen=True)
class ReadStep:
    """Hold what all workers together read in a step.

    Attributes:
        attempt: of the workers that did it.
        time: Unix time at which the last of them had.
        samples: (epoch, window) pairs, sorted; a pair that was read twice is there twice.
    """

    attempt: int
    time: float
    samples: list[tuple[int, int]]


def read_samples(run_dir: Path) -> list[dict[int, ReadStep]]:
    """Return for each attempt, oldest first, what was read in each step; a line cut off by a kill is left out."""
    attempts: dict[int, dict[int, ReadStep]] = {}
    for path in sorted((run_dir / _FOLDER).glob("*.jsonl")):
        attempt = int(path.name.split("-")[0])
        steps = attempts.setdefault(attempt, {})
        for line in path.read_text().splitlines(keepends=True):
            if not line.endswith("\n"):
                continue
            found = json.loads(line)
            pairs = [(epoch, window) for epoch, window in found["samples"]]
            before = steps.get(found["step"], ReadStep(attempt, 0.0, []))
            steps[found["step"]] = ReadStep(attempt, max(before.time, found["time"]), sorted([*before.samples, *pairs]))
    return [attempts[attempt] for attempt in sorted(attempts)]


def surviving(attempts: list[dict[int, ReadStep]]) -> dict[int, ReadStep]:
    """Return what each step of the final weights read: steps that a later attempt repeated were lost."""
    kept: dict[int, ReadStep] = {}
    for steps in attempts:
        first = min(steps, default=None)
        if first is not None:
            kept = {step: read for step, read in kept.items() if step < first} | steps
    return kept
