"""Where values come from: Optuna through Ray Tune's OptunaSearch, random draws, or a grid."""

import logging
import math
import random
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from rcdist.sweep.space import Parameter, Space, Values

if TYPE_CHECKING:
    import optuna

STARTUP_TRIALS = 4
"""Random trials before Optuna's estimator has anything to go by."""


class Sampler(Protocol):
    """Propose values and learn from what came of them."""

    def ask(self) -> tuple[str, Values] | None:
        """Return values under a key of their own, None when there are no more."""

    def tell(self, key: str, point: Sequence[float] | None) -> None:
        """Say what the values of a key came to; None: nothing, they cannot be run or have failed."""

    def replay(self, values: Values) -> str:
        """Take in values that an earlier job has asked for, and return their key."""


class GridSampler:
    """Go through all combinations in order."""

    def __init__(self, space: Space) -> None:
        self._rest: Iterator[Values] = space.grid()
        self._count = 0

    def ask(self) -> tuple[str, Values] | None:
        """See Sampler.ask."""
        self._count += 1
        values = next(self._rest, None)
        return None if values is None else (str(self._count), values)

    def tell(self, key: str, point: Sequence[float] | None) -> None:
        """See Sampler.tell; a grid does not learn."""

    def replay(self, values: Values) -> str:
        """See Sampler.replay; the grid comes by them again, and what has been tried is not tried twice."""
        return ""


class RandomSampler:
    """Draw every parameter by itself, uniformly; the n-th draw of a seed is always the same."""

    def __init__(self, space: Space, seed: int) -> None:
        self._space, self._random = space, random.Random(seed)
        self._count = 0

    def ask(self) -> tuple[str, Values] | None:
        """See Sampler.ask."""
        self._count += 1
        return str(self._count), self._space.pick(self._draw)

    def _draw(self, parameter: Parameter) -> Any:
        if parameter.choices or parameter.step is not None:
            return self._random.choice(parameter.grid())
        low, high = parameter.low, parameter.high
        if parameter.log:
            value = math.exp(self._random.uniform(math.log(low), math.log(high)))
        else:
            value = self._random.uniform(low, high)
        return round(value) if parameter.is_int else value

    def tell(self, key: str, point: Sequence[float] | None) -> None:
        """See Sampler.tell; chance does not learn."""

    def replay(self, values: Values) -> str:
        """See Sampler.replay; the same draws come by again."""
        return ""


class OptunaSampler:
    """Let Optuna propose by Gaussian processes and expected hypervolume, through Ray Tune's OptunaSearch.

    Args:
        space: define-by-run, so that conditions are Optuna's own.
        objectives: names; all are minimised.
        seed: of the estimator.
        replayed: values of an earlier job, to be taken in by `replay` in this order before anything is asked.
        first: values to be proposed before the estimator's own, unless they were replayed.
    """

    def __init__(
        self,
        space: Space,
        objectives: Sequence[str],
        seed: int,
        replayed: Sequence[Values] = (),
        first: Sequence[Values] = (),
    ) -> None:
        import optuna
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        logging.getLogger("ray.tune.search.optuna").setLevel(logging.ERROR)
        self._space, self._objectives = space, list(objectives)
        # With the same seed a second job would draw what the first has tried already.
        self._search = OptunaSearch(
            space=self._define,
            metric=self._objectives,
            mode=["min"] * len(objectives),
            sampler=make_estimator(seed + 1_000_003 * len(replayed)),
            points_to_evaluate=[self._label(v) for v in [*replayed, *(v for v in first if v not in replayed)]],
        )
        self._count = 0

    def _define(self, trial: "optuna.Trial") -> None:
        self._space.pick(lambda parameter: suggest(trial, parameter))

    def ask(self) -> tuple[str, Values] | None:
        """See Sampler.ask."""
        self._count += 1
        key = f"optuna-{self._count}"
        with warnings.catch_warnings():
            # It takes a second where a Gaussian process is fitted; Ray takes that for training inside the definition.
            warnings.filterwarnings("ignore", message="Define-by-run function")
            found = self._search.suggest(key) or {}
        labels = {parameter.name: parameter.labels for parameter in self._space.parameters if parameter.choices}
        return key, {name: labels[name][value] if name in labels else value for name, value in found.items()}

    def tell(self, key: str, point: Sequence[float] | None) -> None:
        """See Sampler.tell."""
        result = None if point is None else dict(zip(self._objectives, point, strict=True))
        self._search.on_trial_complete(key, result, error=point is None)

    def replay(self, values: Values) -> str:
        """See Sampler.replay."""
        asked = self.ask()
        assert asked is not None
        return asked[0]

    def _label(self, values: Values) -> dict[str, Any]:
        """Return values as Optuna has them."""
        found = {}
        for parameter in self._space.parameters:
            if parameter.name in values:
                value = values[parameter.name]
                found[parameter.name] = next((k for k, v in parameter.labels.items() if v == value), value)
        return found


def make_estimator(seed: int) -> "optuna.samplers.BaseSampler":
    """Return the estimator that sampler=optuna stands for: Gaussian processes, which a search of tens of trials needs.

    README.md beside this file has what it is worth, and what the tree-structured Parzen estimator is.
    """
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.GPSampler(seed=seed, n_startup_trials=STARTUP_TRIALS, deterministic_objective=False)


def suggest(trial: "optuna.Trial", parameter: Parameter) -> Any:
    """Let Optuna pick a parameter, and return its value."""
    if parameter.choices:
        return parameter.labels[trial.suggest_categorical(parameter.name, list(parameter.labels))]
    if parameter.is_int:
        low, high, step = round(parameter.low), round(parameter.high), round(parameter.step or 1)
        return trial.suggest_int(parameter.name, low, high, step=step, log=parameter.log)
    return trial.suggest_float(parameter.name, parameter.low, parameter.high, step=parameter.step, log=parameter.log)
