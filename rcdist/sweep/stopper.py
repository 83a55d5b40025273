"""When a running trial may be stopped: its lower bound is dominated, for whatever it still learns."""

from collections.abc import Sequence

from rcdist.report.pareto import Point, dominates

Curve = Sequence[tuple[float, float]]
"""(tokens, quality) at each evaluation; the last is of the end."""

MIN_FINISHED = 4
"""Finished trials from which on their improvements say something about others'."""
SLACK = 0.25
"""A trial may still improve by this much more than any finished one has from the same place on."""


def lower_bound(curve: Curve, finished: Sequence[Curve]) -> float | None:
    """Return what the trial's quality cannot fall below, None while too little is known.

    All trials see the same batches in the same order and are evaluated at the same steps, so that improvements can be
    compared: none of the finished trials has improved by more than the largest one from this evaluation to its end, and
    a quarter is added to it.

    Args:
        curve: of the running trial; its last point is the newest.
        finished: of trials that were trained to the end.
    """
    tokens, quality = curve[-1]
    improvements = [dict(other)[tokens] - other[-1][1] for other in finished if tokens in dict(other)]
    if len(improvements) < MIN_FINISHED:
        return None
    return quality - max(max(improvements), 0.0) * (1 + SLACK)


def find_dominating(bound: float, cost: float | None, finished: Sequence[Point]) -> Point | None:
    """Return a finished trial's point that dominates even the best that a running one can reach.

    Args:
        bound: its lower bound.
        cost: which is known from the start; None: there is one objective.
        finished: (quality, cost), or (quality,), of finished trials.
    """
    best = (bound,) if cost is None else (bound, cost)
    return next((point for point in finished if dominates(point, best)), None)
