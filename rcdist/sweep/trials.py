"""The trials of a search and their journal, trials.jsonl: what was proposed, and what came of it."""

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from rcdist.config import JobConfig, per_letter
from rcdist.model.specs import frozen_specs
from rcdist.report.pareto import Point, find_front
from rcdist.storage import LineFile, warn_once

Status = Literal["running", "paused", "finished", "stopped", "failed", "infeasible"]
"""running: proposed, no end known; paused: out of budget, a start with more goes on; stopped: dominated; infeasible: no
cluster of ours can hold it."""

OPEN = ("running", "paused")
"""Of trials that another start goes on with."""

OUTCOME = "outcome"
"""Key of a trial's last report to Tune: the trial with its end, as JSON."""

BASELINE = 0
"""Number of the trial with plan T and otherwise the fixed part."""


@dataclass(frozen=True)
class Trial:
    """Hold one trial.

    Attributes:
        number: from 0, the baseline, in the order of proposal.
        plan: as resolved.
        values: what was picked of each parameter; empty for the baseline.
        settings: the run's settings by dotted key that differ from the fixed part.
        repeats: the trial that it trains again with another seed; None: it is one of the search.
        seed: added to the fixed part's seeds.
        status: see Status.
        reason: why it did not finish.
        costs: by objective, known from the start.
        qualities: by objective, at its end.
        curve: (tokens, the first objective) at each evaluation.
        used_s: device seconds by the clock.
        used_usd: money by the clock.
        wall_s: from its start to its end.
        mlflow_run_id: of its run.
    """

    number: int
    plan: str
    values: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    repeats: int | None = None
    seed: int = 0
    status: Status = "running"
    reason: str = ""
    costs: dict[str, float] = field(default_factory=dict)
    qualities: dict[str, float] = field(default_factory=dict)
    curve: list[tuple[float, float]] = field(default_factory=list)
    used_s: float = 0.0
    used_usd: float = 0.0
    wall_s: float = 0.0
    mlflow_run_id: str | None = None

    def point(self, objectives: Sequence[str]) -> Point:
        """Return the objectives of a finished trial."""
        return tuple((self.qualities | self.costs)[name] for name in objectives)

    def ended(self, **changes: Any) -> "Trial":
        """Return the trial with its end."""
        return replace(self, **changes)


def read_trial(fields: Mapping[str, Any]) -> Trial:
    """Return a trial from its JSON."""
    return Trial(**{**fields, "curve": [tuple(point) for point in fields["curve"]]})


class Journal:
    """Keep every trial's newest state, on disk before it is used; safe to use from several threads.

    Args:
        path: trials.jsonl; read if it exists. A last line that was cut off is left out.
    """

    def __init__(self, path: Path) -> None:
        self._trials: dict[int, Trial] = {}
        self._lock = threading.Lock()
        self._file = LineFile(path)
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                trial = read_trial(json.loads(line))
            except (ValueError, TypeError, KeyError):
                warn_once(path, f"{path} has a damaged line, which is passed over")
                continue
            self._trials[trial.number] = trial

    def put(self, trial: Trial) -> None:
        """Write down a trial's new state."""
        with self._lock:
            self._file.append(json.dumps(asdict(trial)))
            self._trials[trial.number] = trial

    @property
    def trials(self) -> list[Trial]:
        """Return all trials by number."""
        with self._lock:
            return [self._trials[number] for number in sorted(self._trials)]

    @property
    def next_number(self) -> int:
        """Return the number of the next trial."""
        with self._lock:
            return max(self._trials, default=-1) + 1


def searched(trials: Sequence[Trial]) -> list[Trial]:
    """Return the finished trials of the search, without repeats."""
    return [trial for trial in trials if trial.status == "finished" and trial.repeats is None]


def front_of(trials: Sequence[Trial], objectives: Sequence[str]) -> list[Trial]:
    """Return the finished trials of the search that no other dominates, the best quality first."""
    done = searched(trials)
    found = [done[i] for i in find_front([trial.point(objectives) for trial in done])]
    return sorted(found, key=lambda trial: (*trial.point(objectives), trial.number))


def identify(config: JobConfig) -> str:
    """Return what a run's result depends on: two trials with the same would be the same trial.

    Settings of matrices that the plan does not freeze, and of layers that it does not insert, are left out.
    """
    reservoir, architecture = config.reservoir, config.architecture
    specs = frozen_specs(architecture)
    letters = {letter for block in architecture.blocks for letter in block.frozen_letters()}
    inserts = any(block.insert for block in architecture.blocks)
    letters |= {"r"} if inserts else set()
    kept = {
        "blocks": [str(block) for block in architecture.blocks],
        "specs": [spec.to_dict() for spec in specs],
        "gain": {letter: per_letter(reservoir.gain, letter, True) for letter in sorted(letters)},
        "output_gate": reservoir.output_gate,
        "leak_rate": reservoir.leak_rate,
        "placement": [reservoir.placement, reservoir.combine] if inserts else None,
    }
    tree = config.model_dump(
        mode="json", exclude={"name", "storage_path", "reservoir", "tracking", "checkpoint", "cost"}
    )
    return json.dumps(tree | {"reservoir": kept}, sort_keys=True)
