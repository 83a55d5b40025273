"""The tables of a study: for the terminal, and as CSV for everything else."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rcdist.report.csv_text import format_csv
from rcdist.report.runs import change
from rcdist.report.statistics import Difference
from rcdist.storage import write_file
from rcdist.study.results import PAIRS, QUALITY, ArmResult, StudyResult, Times, text_metric
from rcdist.study.timing import KINDS
from rcdist.tracking.progress import draw


def format_tables(result: StudyResult) -> str:
    """Draw what the arms cost, and what they are worth, each beside its baseline."""
    from rich import box
    from rich.table import Table

    parts = []
    for title, (columns, rows) in (("cost", _costs(result)), ("quality", _qualities(result))):
        table = Table(title=f"{result.name}: {title}", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for number, column in enumerate(columns):
            table.add_column(column, justify="left" if number < 2 else "right")
        for row in rows:
            table.add_row(*row)
        parts.append(draw(table))
    devices = [f"{kind}: {name}" for kind, name in result.devices.items()]
    notes = "Differences to the baseline in per cent, paired by seed, with 95 % intervals; blimp in points."
    return "\n".join([*parts, notes, *devices])


def _costs(result: StudyResult) -> tuple[list[str], list[list[str]]]:
    devices = list(result.devices)
    columns = [
        "arm",
        "plan",
        "over",
        "stored",
        "",
        "trained",
        "checkpoint",
        *(f"{kind} {d}" for d in devices for kind in KINDS),
    ]
    columns += [f"AUCC {device}" for device in devices]
    rows = []
    for arm in result.arms.values():
        base = result.baseline_of(arm)
        stored = arm.parameters.get("stored", 0.0)
        row = [arm.name, arm.plan, base.name if base else "", f"{stored:,.0f}"]
        row += [change(stored, base.parameters.get("stored")) if base else "", f"{arm.parameters['trained']:,.0f}"]
        row.append(row[-1])  # what is frozen is made again from its seed
        for device in devices:
            for kind in KINDS:
                time = arm.times.get(device, {}).get(kind)
                row.append("" if time is None else _ratio(time.ratio, time.low, time.high) if base else _speed(time))
        for device in devices:
            areas = arm.areas(base, device) if base else None
            row.append(f"{areas[0] / areas[1] - 1:+.2%}" if areas else "")
        rows.append(row)
    return columns, rows


def _ratio(value: float, low: float, high: float) -> str:
    return f"{value - 1:+.1%} [{low - 1:+.1%}, {high - 1:+.1%}]"


def _speed(time: Times) -> str:
    return f"{1 / time.seconds:,.0f} tok/s"


def _qualities(result: StudyResult) -> tuple[list[str], list[list[str]]]:
    has_pairs = any(PAIRS in arm.values for arm in result.arms.values())
    columns = ["arm", "plan", "seeds", "bits/byte", "held out", *result.texts, *(["blimp"] if has_pairs else [])]
    rows = []
    for arm in result.arms.values():
        base, mean = result.baseline_of(arm), arm.mean(QUALITY)
        row = [arm.name, arm.plan, str(len(arm.curves)), f"{mean.mean:.4f}" if mean else ""]
        for metric in (QUALITY, *map(text_metric, result.texts)):
            own = arm.mean(metric)
            row.append(_percent(arm.to(base, metric)) if base else f"{own.mean:.4f}" if own else "")
        if has_pairs:
            own = arm.mean(PAIRS)
            row.append(
                _percent(arm.to(base, PAIRS, relative=False), sign="") if base else f"{own.mean:.4f}" if own else ""
            )
        rows.append(row)
    return columns, rows


def _percent(found: Difference | None, sign: str = "%") -> str:
    if found is None:
        return ""
    if found.low is None or found.high is None:
        return f"{100 * found.mean:+.2f}{sign}"
    return f"{100 * found.mean:+.2f}{sign} [{100 * found.low:+.2f}, {100 * found.high:+.2f}]"


def write_tables(result: StudyResult, folder: Path) -> list[Path]:
    """Write <study>.csv (one row per arm), <study>-runs.csv (per run) and <study>-curves.csv (per evaluation).

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tables = {
        result.name: [_arm_row(arm, result) for arm in result.arms.values()],
        f"{result.name}-runs": [row for arm in result.arms.values() for row in _run_rows(arm)],
        f"{result.name}-curves": [row for arm in result.arms.values() for row in _curve_rows(arm)],
    }
    files = []
    for name, rows in tables.items():
        files.append(folder / f"{name}.csv")
        write_file(files[-1], format_csv(rows), durably=False)
    return files


def _arm_row(arm: ArmResult, result: StudyResult) -> dict[str, Any]:
    base = result.baseline_of(arm)
    row: dict[str, Any] = {"arm": arm.name, "plan": arm.plan, "baseline": base.name if base else ""}
    row |= {f"parameters/{name}": int(count) for name, count in arm.parameters.items() if name != "ratio"}
    row["parameters/checkpoint"] = int(arm.parameters["trained"])
    row["seeds"] = len(arm.curves)
    for metric in (QUALITY, *map(text_metric, result.texts), PAIRS):
        mean = arm.mean(metric)
        if mean is not None:
            row[metric] = _round(mean.mean)
        found = arm.to(base, metric, relative=metric != PAIRS) if base else None
        if found is not None:
            row |= _interval(f"{metric}/to_baseline", found)
    for device, times in arm.times.items():
        for kind, time in times.items():
            row |= {f"time/{device}/{kind}/{part}": float(f"{value:.4g}") for part, value in vars(time).items()}
        row[f"time/{device}/device"] = result.devices.get(device, "")
        areas = arm.areas(base, device) if base else None
        if areas:
            row |= {f"aucc/{device}": _round(areas[0]), f"aucc/{device}/baseline": _round(areas[1])}
    return row | {"device_s": round(arm.device_s, 1)}


def _interval(name: str, found: Difference) -> Mapping[str, Any]:
    bounds = {"low": found.low, "high": found.high}
    return {name: _round(found.mean)} | {f"{name}/{k}": _round(v) for k, v in bounds.items() if v is not None}


def _round(value: float) -> float:
    return round(value, 6)


def _run_rows(arm: ArmResult) -> Sequence[dict[str, Any]]:
    return [
        {"arm": arm.name, "seed": seed, "plan": arm.plan}
        | {name: found[seed] for name, found in arm.values.items() if seed in found}
        for seed in arm.curves
    ]


def _curve_rows(arm: ArmResult) -> Sequence[dict[str, Any]]:
    return [
        {"arm": arm.name, "seed": seed, "tokens": int(tokens), QUALITY: _round(value)}
        for seed, curve in arm.curves.items()
        for tokens, value in curve
    ]
