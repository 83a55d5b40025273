"""Why training may have to save or to end now: rank 0 looks, and all ranks hear of it with the loss of the step."""

import time
from dataclasses import dataclass

import ray.train

from rcdist.config import JobConfig
from rcdist.tracking.ledger import Ledger
from rcdist.train.budget import BUDGETS, find_used_up
from rcdist.train.stop import is_stop_requested

_NOTICE_EVERY_S = 5.0
"""Seconds between two looks at whether a node is about to be taken away; clouds give 30 s or more."""
_STOP_EVERY_S = 1.0
"""Seconds between two looks at whether the driver asks for the end: the storage may be a slow mount."""


@dataclass(frozen=True)
class Heard:
    """Hold what all ranks know after a step.

    Attributes:
        used_up: setting of the budget that is used up, None while none is.
        is_noticed: a node is about to be taken away, which was not known before.
        is_stopped: the driver asks for the end.
    """

    used_up: str | None
    is_noticed: bool
    is_stopped: bool


class Wishes:
    """Look for reasons on rank 0 and understand them on every rank.

    Args:
        config: budgets.
        ledger: what was used.
        deadline: Unix time at which `train.max_wall_s` is over.
        rank: of this worker.
    """

    def __init__(self, config: JobConfig, ledger: Ledger, deadline: float, rank: int) -> None:
        self._config, self._ledger, self._deadline, self._rank = config, ledger, deadline, rank
        self._looked_for_notice = self._looked_for_stop = time.monotonic()
        self._is_noticed = False

    def look(self) -> tuple[float, float, float]:
        """Return the numbers that `Engine.train_step` adds up over ranks: budget, time to look for a notice, stop."""
        if self._rank > 0:
            return 0.0, 0.0, 0.0
        now, is_stopped = time.monotonic(), False
        if now - self._looked_for_stop > _STOP_EVERY_S:
            self._looked_for_stop, is_stopped = now, is_stop_requested(self._config.run_dir)
        is_due = now - self._looked_for_notice > _NOTICE_EVERY_S
        return find_used_up(self._config, self._ledger, self._deadline), float(is_due), float(is_stopped)

    def hear(self, wishes: tuple[float, ...]) -> Heard:
        """Return what the sums mean; every rank calls it in every step."""
        budget, is_due, is_stopped = wishes
        is_new = False
        if is_due:
            self._looked_for_notice = time.monotonic()
            # Ray answers every rank alike only if all ask in the same step.
            was_noticed, self._is_noticed = self._is_noticed, ray.train.get_preemption_info() is not None
            is_new = self._is_noticed and not was_noticed
        return Heard(BUDGETS[round(budget)], is_new, is_stopped > 0)
