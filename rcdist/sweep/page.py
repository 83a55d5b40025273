"""report.html of a search: its front, curves, repeats, hypervolume, what matters, and every trial."""

from collections.abc import Sequence

from rcdist.report.figures import draw_curves, draw_front, draw_hypervolume, draw_importance
from rcdist.report.page import Section, build_page
from rcdist.report.runs import LABELS, ReportRun, change
from rcdist.report.statistics import mean_interval, paired_difference, parameter_importance
from rcdist.sweep.results import MARGIN, SweepResult, count_tokens, describe_trial, hypervolumes
from rcdist.sweep.settings import SweepConfig
from rcdist.sweep.trials import BASELINE, Trial, searched


def build_report(config: SweepConfig, result: SweepResult, runs: Sequence[ReportRun], baseline: Trial | None) -> str:
    """Return report.html."""
    objectives, done = result.objectives, searched(result.trials)
    first = [run for run in runs if not run.seed]
    table = [_describe_row(run, objectives, baseline) for run in first]
    importance = {
        name: parameter_importance([(t.values, t.point([name])[0]) for t in done if t.values]) for name in objectives
    }
    sections = [
        Section("Front", _CAPTION, draw_front(first, objectives)),
        Section("Curves", "Held-out quality over the tokens trained on.", draw_curves(first, "tokens", objectives[0])),
        Section("Curves over cost", "The same over device seconds.", draw_curves(first, "device_s", objectives[0])),
    ]
    repeats = _describe_repeats(result)
    if repeats:
        columns = ("trial", "plan", "seeds", LABELS[objectives[0]], "95 % interval", "to T, paired", "95 % interval")
        note = "The front trained again with other seeds; differences are between runs of the same seed."
        sections.append(Section("Front, repeated", note, columns=columns, rows=repeats))
    volumes = hypervolumes(result.trials, objectives)
    if volumes:
        note = f"What the front dominates below {MARGIN:g} times the baseline, as a share of all that lies there."
        sections.append(Section("Hypervolume", note, draw_hypervolume(volumes)))
    if any(importance.values()):
        sections.append(Section("What matters", "fANOVA over the finished trials.", draw_importance(importance)))
    heads = [text for name in objectives for text in (LABELS[name], "to T")]
    sections.append(Section("Trials", columns=["trial", "status", *heads, "plan", "reason"], rows=table))
    note = f"{len(done)} finished trials of {count_tokens(config):,} tokens, {config.sweep.sampler} sampler."
    return build_page(f"Search {config.name}", note, sections)


_CAPTION = (
    "No trial is better in one than a trial on the front without being worse in the other. The dashed line is what the "
    "reservoir paper (arXiv:2512.23145) claims to save of the cost, at comparable quality."
)


def _describe_row(run: ReportRun, objectives: Sequence[str], baseline: Trial | None) -> list[str]:
    cells = [run.name, run.status]
    for name in objectives:
        value = run.values.get(name)
        base = baseline.point([name])[0] if baseline else None
        cells += ["", ""] if value is None else [f"{value:.5g}", change(value, base)]
    return [*cells, run.label, run.note]


def _describe_repeats(result: SweepResult) -> list[list[str]]:
    """Return a row for each trial that was trained with more than one seed: mean, and paired difference to T."""
    quality = result.objectives[0]
    values: dict[int, dict[int, float]] = {}
    for trial in result.trials:
        if trial.status == "finished":
            number = trial.number if trial.repeats is None else trial.repeats
            values.setdefault(number, {})[trial.seed] = trial.qualities[quality]
    base, rows = values.get(BASELINE, {}), []
    for number, found in values.items():
        if len(found) < 2:
            continue
        mean = mean_interval(list(found.values()))
        cells = [str(number), describe_trial(next(t for t in result.trials if t.number == number)), str(mean.pairs)]
        cells += [f"{mean.mean:.4f}", _interval(mean.low, mean.high)]
        common = sorted(set(found) & set(base)) if number != BASELINE else []
        if common:
            to_base = paired_difference([found[seed] for seed in common], [base[seed] for seed in common])
            cells += [f"{to_base.mean:+.4f}", _interval(to_base.low, to_base.high)]
        rows.append(cells + [""] * (7 - len(cells)))
    return rows


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"[{low:.4f}, {high:.4f}]"
