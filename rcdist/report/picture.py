"""The front as a PNG, for README, MLflow and chat: legible at half its size, without a browser."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from rcdist.report.figures import BASELINE, FRONT, LINE, REST
from rcdist.report.pareto import find_front
from rcdist.report.runs import LABELS, REFERENCE, ReportRun, change, find_baseline, finished

_MOST_LISTED = 12
_LINE_CHARS = 46
"""Of a label, in the list beside the picture; two lines at most."""
_LINE_HEIGHT = 0.036
"""Of a line of that list, as a share of the picture."""
_LISTED_HEIGHT = 0.75
"""Of the list at most; the legend is below it."""


def draw_picture(path: Path, runs: Sequence[ReportRun], objectives: Sequence[str], title: str) -> None:
    """Write a picture of the front, 1,600 x 900 pixels; its runs are numbered and listed beside it.

    Args:
        path: of the PNG.
        runs: those that are finished are drawn.
        objectives: quality, and a cost if there is one.
        title: of the picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = finished(runs, objectives)
    quality, cost = objectives[0], objectives[1] if len(objectives) > 1 else None
    points = [tuple(run.values[name] for name in objectives) for run in shown]
    x = [run.values[cost] if cost else float(i) for i, run in enumerate(shown)]
    y = [run.values[quality] for run in shown]
    front = sorted(find_front(points), key=lambda i: x[i])

    figure = Figure(figsize=(16, 9), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    axes, side = figure.subplots(1, 2, width_ratios=[3, 2])
    axes.scatter(x, y, s=45, color=REST, label="other trials")
    if cost:
        axes.step([x[i] for i in front], [y[i] for i in front], where="post", color=FRONT, linewidth=1.5)
    axes.scatter([x[i] for i in front], [y[i] for i in front], s=130, color=FRONT, label="front", zorder=3)
    bases = [i for i, run in enumerate(shown) if run.is_baseline]
    axes.scatter(
        [x[i] for i in bases],
        [y[i] for i in bases],
        s=220,
        marker="D",
        color=BASELINE,
        label="baseline, plan T",
        zorder=4,
    )
    for i in sorted({*front, *bases}):
        axes.annotate(
            shown[i].name, (x[i], y[i]), xytext=(9, 9), textcoords="offset points", fontsize=16, weight="bold"
        )
    baseline = find_baseline(shown)
    if baseline and cost in REFERENCE:
        share, text = REFERENCE[cost]
        axes.axvline(
            baseline.values[cost] * (1 - share), color=LINE, linestyle="--", linewidth=2, label=f"paper: {text}"
        )
    axes.set_xlabel(LABELS.get(cost or "", "trial"), fontsize=17)
    axes.set_ylabel(LABELS[quality], fontsize=17)
    axes.set_title(title, fontsize=18, loc="left")
    axes.tick_params(labelsize=14)
    axes.ticklabel_format(useOffset=False, axis="y")
    axes.margins(x=0.08, y=0.1)
    axes.grid(alpha=0.3)

    side.axis("off")
    # Not inside the axes: wherever it is put there, some front has a point.
    side.legend(*axes.get_legend_handles_labels(), fontsize=14, loc="lower left")
    listed = sorted({*front, *bases}, key=lambda i: x[i])[:_MOST_LISTED]
    labels = [textwrap.wrap(shown[i].label, _LINE_CHARS)[:2] for i in listed]
    height = min(_LINE_HEIGHT, _LISTED_HEIGHT / max(sum(len(lines) + 1.6 for lines in labels), 1))
    top = 1.0
    for i, lines in zip(listed, labels, strict=True):
        run = shown[i]
        colour = BASELINE if run.is_baseline else FRONT
        saved = change(x[i], baseline.values[cost]) if baseline and cost else ""
        side.text(0.0, top, run.name, fontsize=15, weight="bold", color=colour, va="top")
        side.text(0.12, top, "\n".join(lines), fontsize=14, va="top", family="monospace")
        below = top - len(lines) * height
        side.text(0.12, below, f"{y[i]:.4f}   {saved}", fontsize=13, va="top", color="#444444")
        top = below - 1.6 * height
    figure.tight_layout()
    figure.savefig(path)
