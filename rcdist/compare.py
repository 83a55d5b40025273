"""Compare runs and searches that MLflow has: a table for the terminal, and a page with fronts, curves and intervals."""

import contextlib
import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rcdist.errors import ConfigError
from rcdist.report.figures import draw_curves, draw_front
from rcdist.report.page import Section, build_page
from rcdist.report.runs import LABELS, CurvePoint, ReportRun, change, find_baseline
from rcdist.report.statistics import Difference, mean_interval, paired_difference
from rcdist.tracking.connect import refusing
from rcdist.tracking.mlflow import check_server
from rcdist.tracking.mlflow_runs import TrackedRun, find_runs, list_names
from rcdist.tracking.progress import draw

QUALITY = "eval/bits_per_byte"
_COSTS = {
    "model/stored_parameters": "cost.parameters.stored",
    "model/train_flops": "cost.flops_per_token.train",
    "model/prefill_flops": "cost.flops_per_token.prefill",
    "model/decode_flops": "cost.flops_per_token.decode",
}
"""Costs that are parameters of a run in MLflow, by objective."""
_HISTORIES = (QUALITY, "train/tokens", "cost/device_s", "cost/usd")
_SEEDS = ("seed", "data.seed", "reservoir.seed")
"""Settings in which runs of one group may differ: by them they are paired."""
_IS_NO_SETTING = (
    "name",
    "storage_path",
    "tracking.",
    "workers.",
    "reservoir_digest",
    "cost.",
    "checkpoint.",
    "cluster.",
)
_STATUS = {"FINISHED": "finished", "KILLED": "stopped", "FAILED": "failed", "RUNNING": "running"}


@dataclass(frozen=True)
class Group:
    """Hold runs that differ in their seeds only.

    Attributes:
        label: plan, and the settings in which the groups differ.
        runs: by seed.
        quality: mean over the seeds, with its 95 % interval.
        to_baseline: the paired difference to the baseline's runs of the same seeds; None without one, and for itself.
    """

    label: str
    runs: Sequence[ReportRun]
    quality: Difference
    to_baseline: Difference | None


def read(uri: str, experiment: str, names: Sequence[str], timeout_s: float) -> list[ReportRun]:
    """Return the runs of these names, and the trials of searches among them.

    Raises:
        ConfigError: the store does not answer, or has no run of a name.
    """
    check_server(uri, experiment, timeout_s)
    found: list[TrackedRun] = []
    with refusing(uri):
        for name in names:
            runs = find_runs(uri, experiment, name, _HISTORIES)
            if not runs:
                raise _no_such_run(name, list_names(uri, experiment), experiment)
            found += runs
    return _to_report(found)


def _no_such_run(name: str, known: Sequence[str], experiment: str) -> ConfigError:
    near = difflib.get_close_matches(name, known, n=1)
    remedy = f"The nearest one is {near[0]}" if near else f"It has {', '.join(known[:8]) or 'none'}"
    return ConfigError("names", name, f"the experiment {experiment!r} has no run and no search of that name", remedy)


def _to_report(found: Sequence[TrackedRun]) -> list[ReportRun]:
    settings = [_settings(run) for run in found]
    varied = {k for s in settings for k in s if len({json.dumps(other.get(k)) for other in settings}) > 1}
    varied -= {"reservoir.plan"}
    runs = []
    for run, own in zip(found, settings, strict=True):
        plan = run.params.get("reservoir.plan", "")
        # How frozen matrices would be made says nothing of plan T.
        said = [key for key in sorted(varied) if plan != "T" or not key.startswith("reservoir.")]
        short = [_shorten(key, own[key]) for key in said if own.get(key) not in (None, "None")]
        costs = {name: float(run.params[key]) for name, key in _COSTS.items() if key in run.params}
        seen = {
            name.removeprefix("sweep/objective/"): v for name, v in run.metrics.items() if "sweep/objective/" in name
        }
        runs.append(
            ReportRun(
                name=run.name,
                plan=plan,
                label=" ".join([plan, *short]),
                status=_STATUS.get(run.status, run.status.lower()),
                is_baseline=plan == "T",
                values={**run.metrics, **costs, **seen},
                curve=_read_curve(run),
                group=json.dumps(own, sort_keys=True),
                seed=int(run.params.get("seed", 0)),
            )
        )
    return runs


def _shorten(key: str, value: str) -> str:
    """Write a setting as in `topology.G=hadamard` or `input_scaling=0.707`."""
    parts = key.split(".")
    with contextlib.suppress(ValueError):
        value = f"{float(value):.3g}"
    return f"{'.'.join(parts[-2:] if len(parts[-1]) == 1 else parts[-1:])}={value}"


def _settings(run: TrackedRun) -> dict[str, str]:
    """Return what makes a run what it is, besides its seeds."""
    kept = {k: v for k, v in run.params.items() if not k.startswith(_IS_NO_SETTING) and k not in _SEEDS}
    return {k: v for k, v in kept.items() if "digest" not in k and not k.startswith("reservoir_spectral_radius")}


def _read_curve(run: TrackedRun) -> list[CurvePoint]:
    by_step: dict[str, dict[int, float]] = {name: dict(run.histories.get(name, ())) for name in _HISTORIES}
    tokens, seconds, usd = (by_step[name] for name in _HISTORIES[1:])
    return [
        CurvePoint(tokens[step], seconds.get(step, 0.0), usd.get(step, 0.0), quality)
        for step, quality in run.histories.get(QUALITY, ())
        if step in tokens
    ]


def group(runs: Sequence[ReportRun]) -> list[Group]:
    """Put runs that differ in their seeds only together, the baseline first, then by quality."""
    done = [run for run in runs if run.status == "finished" and QUALITY in run.values]
    members: dict[str, list[ReportRun]] = {}
    for run in done:
        members.setdefault(run.group, []).append(run)
    base = next((found for found in members.values() if found[0].is_baseline), None)
    of_base = {run.seed: run.values[QUALITY] for run in base or ()}
    groups = []
    for found in members.values():
        by_seed = {run.seed: run.values[QUALITY] for run in found}
        common = sorted(set(by_seed) & set(of_base)) if found is not base else []
        paired = [by_seed[seed] for seed in common], [of_base[seed] for seed in common]
        to_base = paired_difference(*paired) if common else None
        groups.append(Group(found[0].label, found, mean_interval(list(by_seed.values())), to_base))
    return sorted(groups, key=lambda item: (not item.runs[0].is_baseline, item.quality.mean))


def describe(runs: Sequence[ReportRun]) -> dict[str, Any]:
    """Return the comparison as plain types, for JSON."""
    baseline = find_baseline(runs)
    return {
        "baseline": baseline.name if baseline else None,
        "groups": [
            {
                "label": item.label,
                "runs": [run.name for run in item.runs],
                "seeds": [run.seed for run in item.runs],
                QUALITY: vars(item.quality),
                "to_baseline": vars(item.to_baseline) if item.to_baseline else None,
                "costs": {name: item.runs[0].values[name] for name in _COSTS if name in item.runs[0].values},
            }
            for item in group(runs)
        ],
        "unfinished": {run.name: run.status for run in runs if run.status != "finished"},
    }


def format_table(runs: Sequence[ReportRun]) -> str:
    """Draw one row per group for the terminal."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    columns, rows = _rows(runs)
    for column in columns:
        table.add_column(column, justify="left" if column in ("plan", "runs") else "right")
    for row in rows:
        table.add_row(*row)
    unfinished = [f"{run.name} ({run.status})" for run in runs if run.status != "finished"]
    return draw(table) + (f"\nnot finished: {', '.join(unfinished)}" if unfinished else "")


def _rows(runs: Sequence[ReportRun]) -> tuple[list[str], list[list[str]]]:
    groups, baseline = group(runs), find_baseline(runs)
    columns = ["plan", "seeds", "bits per byte", "95 % interval", "to T, paired", "95 % interval"]
    short = {
        "model/stored_parameters": "parameters",
        "model/train_flops": "training",
        "model/prefill_flops": "inference",
    }
    rows = []
    for item in groups:
        to_base = item.to_baseline
        row = [item.label, str(item.quality.pairs), f"{item.quality.mean:.4f}", _interval(item.quality)]
        row += [f"{to_base.mean:+.4f}", _interval(to_base)] if to_base else ["", ""]
        row += [_saved(item.runs[0].values, baseline, name) for name in short]
        row.append(f"{item.runs[0].values['cost/usd']:.3g}" if "cost/usd" in item.runs[0].values else "")
        rows.append([*row, ", ".join(run.name for run in item.runs)])
    return [*columns, *short.values(), "USD", "runs"], rows


def _saved(values: Mapping[str, float], baseline: ReportRun | None, name: str) -> str:
    if name not in values:
        return ""
    base = baseline.values.get(name) if baseline else None
    return change(values[name], base) or f"{values[name]:.4g}"


def _interval(difference: Difference) -> str:
    if difference.low is None or difference.high is None:
        return ""
    return f"[{difference.low:.4f}, {difference.high:.4f}]"


def build_report(title: str, runs: Sequence[ReportRun]) -> str:
    """Return the page: fronts against each cost, curves over tokens, device seconds and money, differences."""
    columns, rows = _rows(runs)
    note = "Runs that differ in their seeds only are one row; differences are between runs of the same seed."
    sections = [Section("Comparison", note, columns=columns, rows=rows)]
    for cost in ("model/stored_parameters", "model/train_flops", "model/prefill_flops", "cost/usd"):
        if any(cost in run.values and QUALITY in run.values for run in runs):
            sections.append(Section(f"Quality against {LABELS[cost]}", "", draw_front(runs, [QUALITY, cost])))
    for over, name in (("tokens", "tokens"), ("device_s", "device seconds"), ("usd", "money")):
        sections.append(Section(f"Held-out quality over {name}", "", draw_curves(runs, over, QUALITY)))  # type: ignore[arg-type]
    unfinished = [[run.name, run.status, run.label] for run in runs if run.status != "finished"]
    if unfinished:
        sections.append(Section("Not finished", columns=("run", "status", "plan"), rows=unfinished))
    return build_page(
        title, f"{len(runs)} runs. Dashed lines: what the reservoir paper (arXiv:2512.23145) claims.", sections
    )
