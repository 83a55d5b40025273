"""What a search leaves: front.csv, trials.csv, front.png, report.html, and the same on its run in MLflow."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from rcdist.config.plan import parse_plan
from rcdist.report.csv_text import format_csv
from rcdist.report.pareto import Point, hypervolume
from rcdist.report.runs import LABELS, CurvePoint, ReportRun, change
from rcdist.report.statistics import area_under_curve
from rcdist.storage import try_write
from rcdist.sweep.plans import PLAN
from rcdist.sweep.settings import SweepConfig
from rcdist.sweep.trials import BASELINE, Status, Trial, front_of, searched
from rcdist.tracking.prices import PriceRow
from rcdist.tracking.progress import draw

logger = logging.getLogger("rcdist")

MARGIN = 1.1
"""The hypervolume counts from here: the baseline's objectives times this."""


@dataclass(frozen=True)
class SweepResult:
    """Hold what a search has found.

    Attributes:
        folder: of the search, with its files.
        objectives: names.
        trials: all, by number.
        front: the finished trials that no other dominates, the best quality first.
        hypervolume: the share that the front dominates below MARGIN times the baseline; None without a baseline.
    """

    folder: Path
    objectives: Sequence[str]
    trials: Sequence[Trial]
    front: Sequence[Trial]
    hypervolume: float | None

    def describe(self) -> str:
        """Return the front as a table for people, with the baseline, and where the files are."""
        from rich import box
        from rich.table import Table

        baseline = next((t for t in self.trials if t.number == BASELINE and t.status == "finished"), None)
        rows = list(self.front)
        if baseline is not None and baseline not in rows:
            rows.append(baseline)
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("trial", justify="right")
        for name in self.objectives:
            table.add_column(LABELS[name], justify="right")
            table.add_column("to T", justify="right")
        table.add_column("plan")
        for trial in rows:
            cells = [str(trial.number)]
            for name, value in zip(self.objectives, trial.point(self.objectives), strict=True):
                base = baseline.point([name])[0] if baseline else None
                cells += [f"{value:.5g}", change(value, base)]
            note = "" if trial in self.front else "  (baseline, not on the front)"
            table.add_row(*cells, describe_trial(trial) + note)
        counts = {status: sum(t.status == status for t in self.trials) for status in STATUSES}
        summary = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
        text = draw(table) if rows else "no trial has finished: there is no front"
        return (
            f"{text}\n{len(self.trials)} trials: {summary}\n{self.folder}/report.html, front.png, front.csv, trials.csv"
        )


STATUSES = get_args(Status)


def describe_trial(trial: Trial) -> str:
    """Return a trial's plan and the other values that were picked for it, in short."""
    letters = {letter for block in parse_plan(trial.plan).pattern for letter in block.letters}
    short = []
    for name, value in trial.settings.items() if BASELINE not in (trial.number, trial.repeats) else ():
        if name == PLAN:
            continue
        if isinstance(value, dict):  # by letter: of those only that the plan names
            value = ",".join(f"{letter}:{_format(v)}" for letter, v in value.items() if letter in letters) or "-"
        short.append(f"{name.rpartition('.')[2]}={_format(value)}")
    seed = f" seed +{trial.seed}" if trial.seed else ""
    return " ".join([trial.plan, *short]) + seed


def _format(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def read_result(config: SweepConfig, folder: Path, trials: Sequence[Trial]) -> SweepResult:
    """Return the front of the trials."""
    objectives, done = config.sweep.objectives, searched(trials)
    reference = _find_reference(done, objectives)
    volume = None if reference is None else _share([trial.point(objectives) for trial in done], reference)
    return SweepResult(folder, objectives, list(trials), front_of(trials, objectives), volume)


def hypervolumes(trials: Sequence[Trial], objectives: Sequence[str]) -> list[float]:
    """Return what the front was worth after each finished trial, in their order, over that of the reference's box.

    1 would be a front that reaches 0 in every objective.
    """
    done = searched(trials)
    reference = _find_reference(done, objectives)
    if reference is None:
        return []
    points = [trial.point(objectives) for trial in done]
    return [_share(points[: i + 1], reference) for i in range(len(points))]


def _find_reference(done: Sequence[Trial], objectives: Sequence[str]) -> Point | None:
    baseline = next((trial for trial in done if trial.number == BASELINE), None)
    return None if baseline is None else tuple(MARGIN * value for value in baseline.point(objectives))


def _share(points: Sequence[Point], reference: Point) -> float:
    return hypervolume(points, reference) / math.prod(reference)


def find_areas(trials: Sequence[Trial], objectives: Sequence[str]) -> dict[int, float]:
    """Return AUCC by trial, up to the cost of training that all finished trials reach."""
    done = [trial for trial in trials if trial.status == "finished" and len(trial.curve) > 1]
    rates = {trial.number: trial.costs["cost/device_s"] / trial.curve[-1][0] for trial in done}
    common = min((trial.costs["cost/device_s"] for trial in done), default=0.0)
    found = {trial.number: area_under_curve(trial.curve, rates[trial.number], common) for trial in done}
    return {number: area for number, area in found.items() if area is not None}


def write_tables(config: SweepConfig, result: SweepResult) -> None:
    """Write trials.csv and front.csv: one row a trial."""
    areas = find_areas(result.trials, result.objectives)
    rows = [_row(trial, areas) for trial in result.trials]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    numbers = {trial.number for trial in result.front}
    try_write(result.folder / "trials.csv", format_csv(rows, columns), durably=False)
    on_front = sorted((row for row in rows if row["trial"] in numbers), key=lambda row: row[result.objectives[0]])
    try_write(result.folder / "front.csv", format_csv(on_front, columns), durably=False)


def _row(trial: Trial, areas: Mapping[int, float]) -> dict[str, Any]:
    row: dict[str, Any] = {"trial": trial.number, "status": trial.status, "plan": trial.plan}
    row |= trial.values | trial.qualities | trial.costs
    row["aucc"] = areas.get(trial.number)
    repeats = {} if trial.repeats is None else {"repeats": trial.repeats, "seed": trial.seed}
    used = {"used_device_s": trial.used_s, "used_usd": trial.used_usd, "wall_s": trial.wall_s}
    return row | used | repeats | {"mlflow_run_id": trial.mlflow_run_id, "reason": trial.reason}


def report_runs(config: SweepConfig, trials: Sequence[Trial], price: PriceRow) -> list[ReportRun]:
    """Return the trials as a report takes them; device seconds and money are those of the trial's cost."""
    runs = []
    for trial in trials:
        per_token = trial.costs.get("cost/device_s", 0.0) / count_tokens(config)
        seconds = [(tokens, tokens * per_token, quality) for tokens, quality in trial.curve]
        runs.append(
            ReportRun(
                name=str(trial.number),
                plan=trial.plan,
                label=describe_trial(trial),
                status=trial.status,
                is_baseline=BASELINE in (trial.number, trial.repeats),
                values=trial.qualities | trial.costs,
                curve=[CurvePoint(tokens, s, s * price.usd_per_device_s, quality) for tokens, s, quality in seconds],
                group=str(trial.number if trial.repeats is None else trial.repeats),
                seed=trial.seed,
                note=trial.reason,
                picked={name: _format(value) for name, value in trial.values.items()},
            )
        )
    return runs


def count_tokens(config: SweepConfig) -> int:
    """Return the tokens that a trial trains on."""
    return config.train.steps * config.train.global_batch_tokens
