"""The searcher that Ray Tune asks: the baseline, what an earlier job left, then a sampler's values, each only once."""

import contextlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from ray.tune.search import Searcher

from rcdist.config import JobConfig
from rcdist.config.cli import dump_config
from rcdist.config.variation import vary
from rcdist.errors import ConfigError, RcdistError
from rcdist.sweep.capacity import Capacity, count_room, describe_lack, find_needs
from rcdist.sweep.samplers import Sampler
from rcdist.sweep.settings import SweepConfig
from rcdist.sweep.space import Space, Values
from rcdist.sweep.trials import BASELINE, OPEN, OUTCOME, Journal, Trial, identify, read_trial

logger = logging.getLogger("rcdist")

MAX_REJECTED = 1000
"""Proposals in a row that are no new run after which a search is taken to be through with its space."""

BASELINE_SETTINGS = {"reservoir.plan": "T", "reservoir.placement": "post_scan"}
"""What the baseline has instead of the fixed part's reservoir."""


class Proposals(Searcher):
    """Propose trials one by one.

    What is no valid run is never proposed, and what was tried already is not tried twice: the sampler is told at once.

    Args:
        config: the search.
        space: what is searched.
        sampler: picks values.
        journal: of the trials; it is written before a trial is proposed.
        capacity: of the cluster.
        costs_of: returns a trial's costs.
        batch: trials whose costs are found together, while none runs; None: costs are found at any time.
        is_over: whether no other trial may start, because a budget is used up.
        only_repeats: propose nothing but what `repeat` adds, and what is left of it.
    """

    def __init__(
        self,
        config: SweepConfig,
        space: Space,
        sampler: Sampler,
        journal: Journal,
        capacity: Capacity,
        costs_of: Callable[[JobConfig], dict[str, float]],
        batch: int | None = None,
        is_over: Callable[[], bool] = lambda: False,
        only_repeats: bool = False,
    ) -> None:
        super().__init__(metric=None, mode=None)
        self._config, self._space, self._sampler, self._journal = config, space, sampler, journal
        self._capacity, self._costs_of, self._batch, self._is_over = capacity, costs_of, batch, is_over
        self._only_repeats = only_repeats
        self._keys: dict[int, str] = {}
        self._known: dict[str, int] = {}
        self._numbers: dict[str, int] = {}
        self._left: list[Trial] = []
        self._paused = {trial.number for trial in journal.trials if trial.status == "paused"}
        self._repeats: list[Trial] = []
        for trial in journal.trials:
            self._known.setdefault(identify(resolve(config, trial)), trial.number)
            if trial.values:
                self._keys[trial.number] = sampler.replay(trial.values)
                self._tell(trial)
            if trial.status in OPEN:
                self._left.append(trial.ended(status="running", reason=""))

    def repeat(self, trials: Sequence[Trial], seeds: int) -> None:
        """Propose trials again, each with 1 to `seeds` added to its seeds; what was done of that is not done again."""
        done = {(trial.repeats, trial.seed) for trial in self._journal.trials if trial.repeats is not None}
        for seed in range(1, seeds + 1):
            for trial in trials:
                if (trial.number, seed) not in done:
                    again = Trial(-1, trial.plan, settings=trial.settings, repeats=trial.number, seed=seed)
                    self._repeats.append(again)

    def suggest(self, trial_id: str) -> Any:
        """Return the next trial for Tune, None to be asked again later, or that there are no more."""
        if self._is_over():
            return Searcher.FINISHED
        if not self._left:
            if self._batch is not None and self._numbers:
                return None
            for _ in range(self._batch or 1):
                made = self._propose()
                if made is None:
                    break
                self._left.append(made)
        if not self._left:
            return Searcher.FINISHED
        trial = self._left.pop(0)
        if trial.number in self._paused:
            self._journal.put(trial)
        self._numbers[trial_id] = trial.number
        config = resolve(self._config, trial)
        needs = find_needs(config, self._capacity, self._config.sweep.gpus_per_trial)
        # The driver has proved the tokens once for all trials.
        config = config.model_copy(update={"data": config.data.model_copy(update={"verify_cache": False})})
        return {
            "trial": json.dumps(asdict(trial)),
            "settings": dump_config(config),
            "bundle": needs.bundle,
            "here": needs.is_here,
        }

    def _propose(self) -> Trial | None:
        if self._repeats:
            return self._start(self._repeats.pop(0))
        if self._only_repeats:
            return None
        trials = [trial for trial in self._journal.trials if trial.repeats is None]
        if not trials:
            baseline = self._start(Trial(BASELINE, "T", settings=BASELINE_SETTINGS))
            if baseline is not None:
                return baseline
        limit = self._config.sweep.trials
        if limit is not None and sum(trial.status != "infeasible" for trial in trials) >= limit:
            return None
        for _ in range(MAX_REJECTED):
            asked = self._sampler.ask()
            if asked is None:
                return None
            trial = self._make(*asked)
            if trial is not None:
                return trial
        logger.info("no new run among %d proposals: the space is searched", MAX_REJECTED)
        return None

    def _make(self, key: str, values: Values) -> Trial | None:
        """Return the new trial of a sampler's values, None if there is none in them."""
        try:
            settings = self._space.settings(values)
            config = resolve(self._config, Trial(-1, "", settings=settings))
            identity = identify(config)
        except RcdistError:
            self._sampler.tell(key, None)
            return None
        known = self._known.get(identity)
        if known is not None:
            earlier = next(trial for trial in self._journal.trials if trial.number == known)
            is_done = earlier.status == "finished"
            self._sampler.tell(key, earlier.point(self._config.sweep.objectives) if is_done else None)
            return None
        number = self._journal.next_number
        self._known[identity], self._keys[number] = number, key
        trial = Trial(number, config.reservoir.plan, values=values, settings=settings)
        return self._start(trial)

    def _start(self, trial: Trial) -> Trial | None:
        """Write a trial down, with its costs; return None if no cluster of ours can hold it, or they are not found."""
        number = self._journal.next_number if trial.number < 0 else trial.number
        trial = trial.ended(number=number)
        config = resolve(self._config, trial)
        self._known.setdefault(identify(config), number)
        needs = find_needs(config, self._capacity, self._config.sweep.gpus_per_trial)
        if not count_room(needs, self._capacity):
            trial = trial.ended(status="infeasible", reason=describe_lack(needs, self._capacity))
            self._journal.put(trial)
            self._tell(trial)
            return None
        try:
            trial = trial.ended(costs=self._costs_of(config))
        except (
            Exception
        ) as error:  # a benchmark ran out of memory, or lost its node: that is the end of this trial only
            reason = " ".join(f"its cost cannot be found: {type(error).__name__}: {error}".split())[:500]
            trial = trial.ended(status="failed", reason=reason)
            logger.warning("trial %d, plan %s: %s", number, trial.plan, reason)
        self._journal.put(trial)
        self._tell(trial)
        return trial if trial.status == "running" else None

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Do nothing: what matters comes at the end."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Write down how a trial ended, and tell the sampler."""
        number = self._numbers.pop(trial_id)
        trial = next(trial for trial in self._journal.trials if trial.number == number)
        if result and OUTCOME in result:
            trial = read_trial(json.loads(result[OUTCOME]))
        else:
            limit = self._config.cluster.max_failures
            reason = (
                f"its process was lost more often than cluster.max_failures={limit}: a node went, or memory ran out"
            )
            trial = trial.ended(status="failed", reason=reason)
        self._journal.put(trial)
        self._tell(trial)

    def _tell(self, trial: Trial) -> None:
        key = self._keys.get(trial.number)
        if key is None or trial.status in OPEN:
            return
        self._sampler.tell(key, trial.point(self._config.sweep.objectives) if trial.status == "finished" else None)

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune pickles its searcher, to restore it some day, and the journal is the state of ours."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the journal is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: see `save`."""


def resolve(config: SweepConfig, trial: Trial) -> JobConfig:
    """Return the settings of a trial's run.

    Raises:
        ConfigError: its values do not go together.
    """
    return vary(config, f"{config.name}-{trial.number:03d}", trial.settings, trial.seed)


def find_cheapest(
    config: SweepConfig, space: Space, candidates: Sequence[Values], costs_of: Callable[[JobConfig], dict[str, float]]
) -> list[Values]:
    """Return the combination of the least cost: it ends every front, and which it is is known without training.

    Nothing is returned for a search without a cost, or with one that has to be measured.
    """
    names = config.sweep.objectives[1:]
    if not names or config.sweep.cost_from == "benchmark":
        return []
    best: tuple[float, Values] | None = None
    for values in candidates:
        with contextlib.suppress(RcdistError):
            trial = resolve(config, Trial(-1, "", settings=space.settings(values)))
            identify(trial)  # refuses a topology that fits no shape
            cost = costs_of(trial)[names[0]]
            if best is None or cost < best[0]:
                best = cost, values
    return [] if best is None else [best[1]]


def find_valid(config: SweepConfig, space: Space, candidates: Sequence[Values]) -> Values:
    """Return the first combination that is a valid run.

    Raises:
        ConfigError: none is, with what is wrong with the first.
    """
    first: RcdistError | None = None
    for values in candidates:
        try:
            identify(resolve(config, Trial(-1, "", settings=space.settings(values))))
        except RcdistError as error:
            first = first or error
        else:
            return values
    assert first is not None
    raise ConfigError("space", None, f"no combination of its values is a run, for {first}", "Correct the values")
