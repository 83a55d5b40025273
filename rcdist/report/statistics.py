"""Figures of finished trials: area under the curve, paired differences with intervals, what parameters matter."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Difference:
    """Hold a mean paired difference with its 95 % interval; `low` and `high` are None for a single pair."""

    mean: float
    low: float | None
    high: float | None
    pairs: int


def paired_difference(values: Sequence[float], baseline: Sequence[float]) -> Difference:
    """Return the mean of values - baseline, pair by pair, with Student's 95 % interval of paired samples.

    Args:
        values: one per seed.
        baseline: of the same seeds, in the same order.
    """
    from scipy import stats

    differences = np.asarray(values, dtype=float) - np.asarray(baseline, dtype=float)
    mean, pairs = float(differences.mean()), len(differences)
    if pairs < 2:
        return Difference(mean, None, None, pairs)
    half = float(stats.t.ppf(0.975, pairs - 1) * stats.sem(differences))
    return Difference(mean, mean - half, mean + half, pairs)


def mean_interval(values: Sequence[float]) -> Difference:
    """Return the mean with Student's 95 % interval."""
    return paired_difference(values, [0.0] * len(values))


def area_under_curve(curve: Sequence[tuple[float, float]], cost_per_token: float, common_cost: float) -> float | None:
    """Return the mean quality along a validation curve over cost, up to a cost that all trials reach (AUCC).

    Shen et al. 2021 (arXiv:2012.15045, section 4.1) take the area over wall-clock time; concurrent trials disturb each
    other's clocks, so that cost is counted here, and the area is divided by its width to have the curve's unit.

    Args:
        curve: (tokens, quality) at each evaluation.
        cost_per_token: of the trial.
        common_cost: at which all trials are compared.

    Returns:
        None if fewer than two evaluations lie below the common cost.
    """
    cost = np.array([tokens * cost_per_token for tokens, _ in curve])
    quality = np.array([value for _, value in curve])
    if len(cost) < 2 or common_cost <= cost[0] or cost[-1] < common_cost * (1 - 1e-9):
        return None
    inside = cost < common_cost
    x = np.append(cost[inside], common_cost)
    y = np.append(quality[inside], np.interp(common_cost, cost, quality))
    return float(np.trapezoid(y, x) / (x[-1] - x[0]))


def parameter_importance(rows: Sequence[tuple[Mapping[str, Any], float]], seed: int = 0) -> dict[str, float]:
    """Return how much of the variation of a target each parameter explains, by fANOVA (Hutter et al. 2014); sum 1.

    Args:
        rows: what was picked, and the target that came of it. A parameter that is not always picked counts where it
            is, with a value of its own for its absence.
        seed: of the forest.

    Returns:
        Shares, largest first; empty where fewer than four trials, or nothing but one value, say nothing.
    """
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    names = sorted({name for picked, _ in rows for name in picked})
    if len(rows) < 4:
        return {}
    distributions: dict[str, Any] = {}
    columns: dict[str, list[Any]] = {}
    for name in names:
        column: list[Any] = [picked.get(name) for picked, _ in rows]
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in column):
            numbers = [float(value) for value in column]
            distributions[name], columns[name] = FloatDistribution(min(numbers), max(numbers)), numbers
        else:
            columns[name] = [str(value) for value in column]
            distributions[name] = CategoricalDistribution(sorted(set(columns[name])))
        if len(set(columns[name])) < 2:
            del distributions[name], columns[name]
    if not columns or len({target for _, target in rows}) < 2:
        return {}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study()
    for i, (_, target) in enumerate(rows):
        params = {name: column[i] for name, column in columns.items()}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=target))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=seed)
    return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))
