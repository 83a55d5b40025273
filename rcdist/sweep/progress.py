"""What a person sees while a search runs: a line per trial that has ended, and the front so far."""

import logging
import time
from collections.abc import Callable, Sequence

from rcdist.report.runs import LABELS, change
from rcdist.sweep.capacity import Capacity
from rcdist.sweep.folder import SweepFolder
from rcdist.sweep.results import SweepResult, describe_trial, read_result, write_tables
from rcdist.sweep.settings import SweepConfig
from rcdist.sweep.trials import BASELINE, OPEN, Journal, Trial, front_of, searched
from rcdist.tracking.gauges import Gauges
from rcdist.tracking.progress import format_duration
from rcdist.tracking.tracker import Tracker

logger = logging.getLogger("rcdist")


class Progress:
    """Say what has happened since the last look.

    Args:
        config: the search.
        journal: of its trials.
        tracker: of the search; it gets the hypervolume over the trials.
        on_trial: called with each trial that has ended.
        folder: whose tables are kept up to date.
    """

    def __init__(
        self,
        config: SweepConfig,
        journal: Journal,
        tracker: Tracker,
        on_trial: Callable[[Trial], None] | None,
        folder: SweepFolder,
    ) -> None:
        self._config, self._journal, self._tracker, self._on_trial = config, journal, tracker, on_trial
        self._folder = folder
        self._seen = {trial.number for trial in journal.trials if trial.status not in OPEN}
        self._front = [trial.number for trial in front_of(journal.trials, config.sweep.objectives)]
        self._gauges = Gauges({"sweep": config.name, "experiment": config.tracking.experiment})
        self._before, self._began = len(self._seen), time.monotonic()

    def describe(self, room: int, capacity: Capacity) -> str:
        """Return the lines at the start."""
        config, known = self._config, len(self._journal.trials)
        tokens = config.train.steps * config.train.global_batch_tokens
        count = "all" if config.sweep.trials is None else str(config.sweep.trials)
        has = f"{capacity.cpus:g} CPUs" + (f", {capacity.gpus:g} GPUs" if capacity.gpus else "")
        lines = [
            f"search {config.name}: {count} trials of {tokens:,} tokens, sampler {config.sweep.sampler}, "
            f"{' against '.join(LABELS[name] for name in config.sweep.objectives)}",
            f"{room} at one time on {has}; results in {self._folder.path}",
        ]
        if known:
            lines.append(f"going on: {len(self._seen)} of {known} trials have ended")
        return "\n".join(lines)

    def poll(self) -> None:
        """Print, record and write down what is new."""
        self._gauges.refresh()
        new = [t for t in self._journal.trials if t.status != "running" and t.number not in self._seen]
        for trial in new:
            self._seen.add(trial.number)
            logger.info(self._format(trial))
            if self._on_trial is not None:
                self._on_trial(trial)
        if not new:
            return
        result = read_result(self._config, self._folder.path, self._journal.trials)
        self._show(result)
        record = {"sweep/trials": float(len(self._seen)), "sweep/failed_trials": float(_count_failed(result.trials))}
        record |= {} if result.hypervolume is None else {"sweep/hypervolume": result.hypervolume}
        self._tracker.log(len(self._seen), record, int(time.time() * 1000))
        write_tables(self._config, result)
        front = [trial.number for trial in result.front]
        if front != self._front:
            self._front = front
            logger.info("front: %s", self._format_front(result.front))

    def close(self) -> None:
        """Say that the search has ended."""
        self._gauges.close()

    def _show(self, result: SweepResult) -> None:
        """Show dashboards how far the search is, and what it has cost."""
        trials, settings = result.trials, self._config.sweep
        shown = {
            "run/active": 1.0,
            "run/step": float(len(self._seen)),
            "run/steps": None if settings.trials is None else float(settings.trials),
            "run/record_time_s": time.time(),
            "sweep/trials": float(len(self._seen)),
            "sweep/failed_trials": float(_count_failed(trials)),
            "sweep/hypervolume": result.hypervolume,
            "cost/usd": sum(trial.used_usd for trial in trials),
            "cost/device_s": sum(trial.used_s for trial in trials),
            "cost/budget_usd": settings.budget_usd,
            "cost/budget_device_s": settings.budget_device_s,
        }
        for place, name in enumerate(settings.objectives):
            if result.front:
                shown[f"sweep/objective/{name}"] = min(t.point(settings.objectives)[place] for t in result.front)
        self._gauges.set({name: value for name, value in shown.items() if value is not None})

    def _format(self, trial: Trial) -> str:
        objectives = self._config.sweep.objectives
        parts = [f"trial {trial.number:>3}  {trial.status:<8}"]
        if trial.status == "finished":
            base = self._baseline()
            for name in objectives:
                value = trial.point([name])[0]
                to_base = change(value, base.point([name])[0]) if base and base.number != trial.number else ""
                parts.append(f"{name} {value:.5g} {to_base}".rstrip())
        parts += [describe_trial(trial), format_duration(trial.wall_s)]
        left = self._left()
        parts += [f"left {left}"] if left else []
        return "  ".join(parts) + (f"\n    {trial.reason}" if trial.reason else "")

    def _left(self) -> str:
        total, done = self._config.sweep.trials, len(self._seen)
        fresh = done - self._before
        if total is None or not fresh or done >= total:
            return ""
        return format_duration((time.monotonic() - self._began) / fresh * (total - done))

    def _format_front(self, front: Sequence[Trial]) -> str:
        objectives = self._config.sweep.objectives
        base = self._baseline()
        shown = []
        for trial in front:
            values = [f"{value:.4g}" for value in trial.point(objectives)]
            if base and len(objectives) > 1:
                values[1] = change(trial.point(objectives)[1], base.point(objectives)[1])
            shown.append(f"{trial.number} ({', '.join(values)})")
        return "  ".join(shown)

    def _baseline(self) -> Trial | None:
        return next((trial for trial in searched(self._journal.trials) if trial.number == BASELINE), None)


def _count_failed(trials: Sequence[Trial]) -> int:
    return sum(trial.status in ("failed", "infeasible") for trial in trials)
