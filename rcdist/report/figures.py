"""Interactive figures for pages, made by plotly; in colours that light and dark pages and all eyes can tell apart."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from rcdist.report.pareto import find_front
from rcdist.report.runs import LABELS, REFERENCE, ReportRun, find_baseline, finished

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

# Okabe and Ito's colours, less black and yellow, which one of the two backgrounds would swallow.
PALETTE = ("#2186C9", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
FRONT, BASELINE, REST, LINE = PALETTE[0], PALETTE[1], "#8C8C8C", PALETTE[2]
_SHOWN_CURVES = 8


def draw_front(runs: Sequence[ReportRun], objectives: Sequence[str], title: str = "") -> "Figure":
    """Draw quality against a cost: the front, the other runs, the baseline, and what the reservoir paper saves.

    Args:
        runs: those that are finished are drawn.
        objectives: quality and cost; with a quality alone, runs are drawn in their order.
        title: of the figure.
    """
    import plotly.graph_objects as go

    shown = finished(runs, objectives)
    places = set(find_front([tuple(run.values[name] for name in objectives) for run in shown]))
    quality, cost = objectives[0], objectives[1] if len(objectives) > 1 else None
    x = [run.values[cost] if cost else float(i) for i, run in enumerate(shown)]
    figure = go.Figure()

    def add(name: str, chosen: list[int], symbol: str, colour: str, size: int, *, text: bool) -> None:
        figure.add_trace(
            go.Scatter(
                x=[x[i] for i in chosen],
                y=[shown[i].values[quality] for i in chosen],
                mode="markers+text" if text else "markers",
                text=[shown[i].name for i in chosen],
                textposition="top center",
                cliponaxis=False,
                hovertext=[shown[i].label for i in chosen],
                hovertemplate="%{hovertext}<br>%{x:.4g}, %{y:.4f}<extra></extra>",
                marker={"symbol": symbol, "color": colour, "size": size},
                name=name,
            )
        )

    on_front = sorted(places, key=lambda i: x[i])
    if cost:
        line = {"color": FRONT, "width": 1.5, "shape": "hv"}
        y = [shown[i].values[quality] for i in on_front]
        figure.add_trace(
            go.Scatter(x=[x[i] for i in on_front], y=y, mode="lines", line=line, showlegend=False, hoverinfo="skip")
        )
    others = [i for i in range(len(shown)) if i not in places and not shown[i].is_baseline]
    add("other runs", others, "circle", REST, 7, text=False)
    add("front", [i for i in on_front if not shown[i].is_baseline], "circle", FRONT, 11, text=True)
    add("baseline, plan T", [i for i, run in enumerate(shown) if run.is_baseline], "diamond", BASELINE, 13, text=True)
    baseline = find_baseline(shown)
    if baseline and cost in REFERENCE:
        share, text = REFERENCE[cost]
        figure.add_vline(
            x=baseline.values[cost] * (1 - share),
            line={"color": LINE, "dash": "dash", "width": 1.5},
            annotation={
                "text": f"paper: {text}",
                "font": {"color": LINE},
                "textangle": -90,
                "xanchor": "right",
                "xshift": -6,
            },
            annotation_position="top left",
        )
    figure.update_layout(title=title, xaxis_title=LABELS.get(cost or "", "run"), yaxis_title=LABELS[quality])
    return _styled(figure)


def draw_curves(runs: Sequence[ReportRun], over: Literal["tokens", "device_s", "usd"], quality: str) -> "Figure":
    """Draw validation curves over tokens, device seconds or money; of many runs the best ones, and the baseline."""
    import plotly.graph_objects as go

    having = [run for run in runs if run.curve]
    having.sort(key=lambda run: (not run.is_baseline, run.status != "finished", run.curve[-1].quality))
    figure = go.Figure()
    for i, run in enumerate(having[:_SHOWN_CURVES]):
        dash = ("solid", "dash", "dot")[i // len(PALETTE) % 3]
        colour = BASELINE if run.is_baseline else [c for c in PALETTE if c != BASELINE][i % (len(PALETTE) - 1)]
        figure.add_trace(
            go.Scatter(
                x=[getattr(point, over) for point in run.curve],
                y=[point.quality for point in run.curve],
                mode="lines+markers",
                name=f"{run.name}  {run.label}",
                line={"color": colour, "width": 3 if run.is_baseline else 1.5, "dash": dash},
                marker={"size": 5},
            )
        )
    titles = {"tokens": "tokens trained on", "device_s": "device seconds", "usd": "USD"}
    figure.update_layout(xaxis_title=titles[over], yaxis_title=LABELS[quality])
    # The legend, one line a curve, is below the figure and not at its expense.
    return _styled(figure, height=440 + 24 * len(figure.data))


def draw_hypervolume(values: Sequence[float]) -> "Figure":
    """Draw what the front was worth after each finished trial."""
    import plotly.graph_objects as go

    numbers = list(range(1, len(values) + 1))
    figure = go.Figure(
        go.Scatter(x=numbers, y=list(values), mode="lines+markers", line={"color": FRONT, "shape": "hv"})
    )
    figure.update_layout(xaxis_title="finished trials", yaxis_title="hypervolume", showlegend=False)
    return _styled(figure)


def draw_importance(shares: Mapping[str, Mapping[str, float]]) -> "Figure":
    """Draw what share of each objective's variation each parameter explains."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for i, (objective, found) in enumerate(shares.items()):
        names = list(found)[::-1]
        bars = [found[name] for name in names]
        figure.add_trace(go.Bar(x=bars, y=names, orientation="h", name=LABELS[objective], marker={"color": PALETTE[i]}))
    figure.update_layout(xaxis_title="share of the variation explained", barmode="group")
    return _styled(figure)


def _styled(figure: "Figure", height: int = 480) -> "Figure":
    """Leave background and text to the page, which knows whether it is light or dark."""
    figure.update_layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 14},
        margin={"l": 80, "r": 20, "t": 50, "b": 60},
        legend={"orientation": "h", "yref": "container", "y": 0.01, "yanchor": "bottom"},
        height=height,
    )
    figure.update_xaxes(gridcolor="rgba(128,128,128,0.25)", zeroline=False, automargin=True, exponentformat="power")
    figure.update_yaxes(gridcolor="rgba(128,128,128,0.25)", zeroline=False, automargin=True)
    return figure
