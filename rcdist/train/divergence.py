"""Guard against loss spikes: skip the update, roll back to a checkpoint if spikes persist, and finally stop."""

import math
import statistics
from collections.abc import Sequence
from typing import Literal

from rcdist.checkpoint.state import SpikeState
from rcdist.config import DivergenceConfig

Action = Literal["go_on", "roll_back", "stop"]

_LEAST_LOSSES = 16
"""Fewest losses for which a median and a spread mean anything."""
_LEAST_JUMP = 0.05
"""Distances below this share of the median are never a spike: a run on a plateau has almost no spread."""


class SpikeGuard:
    """Decide what to do about a step from its loss; every rank decides alike, from reduced losses.

    A spike is a loss whose robust z-score, its distance from the median of the newest applied losses in units of
    1.4826 x their median absolute deviation, is above `divergence.spike_z`.

    Args:
        config: thresholds.
        state: what was remembered; changed in place.
    """

    def __init__(self, config: DivergenceConfig, state: SpikeState) -> None:
        self._config, self.state = config, state
        self.first_skipped = 0
        """The first of the skipped steps that led to the last return to a checkpoint."""

    def limit(self) -> float:
        """Return the loss in nats per token above which the next update is skipped; inf while too little is known."""
        if self._config.spike_z is None or len(self.state.losses) < _LEAST_LOSSES:
            return math.inf
        median = statistics.median(self.state.losses)
        spread = 1.4826 * statistics.median(abs(loss - median) for loss in self.state.losses)
        return median + max(self._config.spike_z * spread, _LEAST_JUMP * abs(median))

    def observe(self, step: int, loss: float, *, applied: bool) -> Action:
        """Record a finished step and return what to do.

        Args:
            step: its number.
            loss: nats per token.
            applied: whether its update was made.
        """
        recent = step - self._config.window_steps
        self.state.skipped = [s for s in self.state.skipped if s > recent]
        if applied:
            self.state.losses = [*self.state.losses, loss][-self._config.window_steps :]
            return "go_on"
        self.state.skipped.append(step)
        if len(self.state.skipped) <= self._config.max_skipped:
            return "go_on"
        self.first_skipped = self.state.skipped[0]
        self.state.skipped = []
        if self.state.rollbacks >= self._config.max_rollbacks:
            return "stop"
        self.state.rollbacks += 1
        return "roll_back"


def describe_limit(losses: Sequence[float], limit: float) -> str:
    """Describe the limit that a loss was compared with."""
    if not losses or math.isinf(limit):
        return "no limit yet"
    return f"limit {limit:.4f}, median {statistics.median(losses):.4f} of {len(losses)} steps"
