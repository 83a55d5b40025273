"""The pictures of a study: what arms cost against what they lose, and how that changes as they are trained longer."""

from collections.abc import Sequence
from pathlib import Path

from rcdist.report.figures import BASELINE, LINE, PALETTE
from rcdist.report.runs import REFERENCE
from rcdist.study.results import QUALITY, ArmResult, StudyResult

_COLOURS = [colour for colour in PALETTE if colour not in (BASELINE, LINE)]
_TOLERANCE = 0.005
"""Loss of bits per byte that counts as comparable, drawn as a line."""
_FEWEST = 3
"""Seeds from which on an interval is drawn: that of two is 18 times as wide as their distance."""


def draw_pictures(result: StudyResult, folder: Path) -> list[Path]:
    """Write <study>-costs.png and <study>-tokens.png; what there is nothing to draw of is left out.

    Raises:
        OSError: the folder cannot be written.
    """
    pairs = [(arm, base) for arm in result.arms.values() if (base := result.baseline_of(arm)) is not None]
    files = []
    if any(arm.to(base, QUALITY) for arm, base in pairs):
        files.append(folder / f"{result.name}-costs.png")
        _draw_costs(files[-1], pairs)
    if any(len(arm.over_tokens(base)) > 1 for arm, base in pairs):
        files.append(folder / f"{result.name}-tokens.png")
        _draw_tokens(files[-1], pairs)
    return files


def _draw_costs(path: Path, pairs: Sequence[tuple[ArmResult, ArmResult]]) -> None:
    """Draw the difference in bits per byte, with intervals, against stored parameters, training and inference time."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    axes_of: list[tuple[str, str, tuple[str, str] | None]] = [("stored parameters", "model/stored_parameters", None)]
    devices = [device for device in ("cuda", "cpu") if any(device in arm.times for arm, _ in pairs)]
    for device in devices:
        shown = {"cuda": "GPU", "cpu": "CPU"}[device]
        axes_of += [(f"training time, {shown}", "time/train_s", (device, "train"))]
        axes_of += [(f"prefill time, {shown}", "time/prefill_s", (device, "prefill"))]
    columns = min(len(axes_of), 3)
    rows = -(-len(axes_of) // columns)
    figure = Figure(figsize=(16, 1 + 6.5 * rows), dpi=80, facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes in grid.flat[len(axes_of) :]:
        axes.axis("off")
    for axes, (label, reference, timed) in zip(grid.flat, axes_of, strict=False):
        axes.scatter([0], [0], marker="D", s=90, color=BASELINE, label="baseline", zorder=4)
        for number, (arm, base) in enumerate(pairs):
            x = _saving(arm, base, timed)
            found = arm.to(base, QUALITY)
            if x is None or found is None:
                continue
            bars = None
            if found.low is not None and found.high is not None and found.pairs >= _FEWEST:
                bars = [[100 * (found.mean - found.low)], [100 * (found.high - found.mean)]]
            colour = _COLOURS[number % len(_COLOURS)]
            axes.errorbar([100 * x], [100 * found.mean], yerr=bars, fmt="o", markersize=10, capsize=5, color=colour)
            axes.annotate(arm.name, (100 * x, 100 * found.mean), xytext=(9, 6), textcoords="offset points", fontsize=14)
        axes.axhline(0, color=BASELINE, linewidth=1)
        axes.axhline(100 * _TOLERANCE, color=LINE, linestyle=":", linewidth=1.5)
        share, text = REFERENCE[reference]
        axes.axvline(-100 * share, color=LINE, linestyle="--", linewidth=2, label=f"paper: {text}")
        axes.set_xlabel(f"{label}, change in %", fontsize=15)
        axes.tick_params(labelsize=13)
        axes.margins(x=0.15, y=0.12)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=12, loc="upper right")
    for axes in grid[:, 0]:
        axes.set_ylabel("held-out bits per byte, change in %", fontsize=15)
    figure.tight_layout()
    figure.savefig(path)


def _saving(arm: ArmResult, base: ArmResult, timed: tuple[str, str] | None) -> float | None:
    """Return the relative change of what a panel is about, None if it was not measured."""
    if timed is None:
        return arm.parameters["stored"] / base.parameters["stored"] - 1
    found = arm.times.get(timed[0], {}).get(timed[1])
    return None if found is None else found.ratio - 1


def _draw_tokens(path: Path, pairs: Sequence[tuple[ArmResult, ArmResult]]) -> None:
    """Draw the difference in bits per byte over the tokens trained on; with 95 % intervals from three seeds on."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 9), dpi=80, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    drawn = [(arm, points) for arm, base in pairs if len(points := arm.over_tokens(base)) > 1]
    most = max(points[-1][1].pairs for _, points in drawn)
    drawn = [(arm, points) for arm, points in drawn if points[-1][1].pairs > 1 or most == 1]
    for number, (arm, points) in enumerate(drawn):
        x, y = [tokens / 1e6 for tokens, _ in points], [100 * found.mean for _, found in points]
        colour = _COLOURS[number % len(_COLOURS)]
        style = ("-", "--", ":")[number // len(_COLOURS) % 3]
        axes.plot(x, y, style, marker="o", color=colour, label=f"{arm.name}   {arm.plan}", linewidth=2)
        bounds = [(found.low, found.high) for _, found in points]
        if all(low is not None for low, _ in bounds) and points[-1][1].pairs >= _FEWEST:
            low, high = ([100 * value for value in side] for side in zip(*bounds, strict=True))
            axes.fill_between(x, low, high, color=colour, alpha=0.15)
    axes.axhline(0, color=BASELINE, linewidth=1.5)
    axes.axhline(100 * _TOLERANCE, color=LINE, linestyle=":", linewidth=1.5)
    axes.set_xlabel("tokens trained on, millions", fontsize=15)
    axes.set_ylabel("held-out bits per byte, change to the baseline in %", fontsize=15)
    axes.tick_params(labelsize=13)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=12)
    figure.tight_layout()
    figure.savefig(path)
