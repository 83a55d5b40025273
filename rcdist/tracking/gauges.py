"""The newest metrics of a run or a search for Prometheus: gauges of Ray's, which the agent of every node exports."""

import time
from collections.abc import Mapping
from functools import cache
from typing import Any

from rcdist.tracking.metrics import METRIC_BY_NAME, Metric

LABELS = ("run", "experiment", "plan", "sweep", "part")
"""Labels of every gauge; what does not apply is empty. `part`: of a metric that has parts, the module or objective."""


def gauge_name(metric: Metric) -> str:
    """Return the name of a metric's gauge; Prometheus has it with `ray_` before it."""
    return f"rcdist_{metric.name.replace('/', '_')}"


_REFRESH_S = 1.0
"""Seconds between two settings of a value that stays: below the interval at which Ray collects them (10 s)."""


class Gauges:
    """Set one gauge per metric of what this process follows; without a connected Ray nothing is set.

    Ray hands a value on once and forgets it: call `refresh` while it is still true.

    Args:
        labels: by name in LABELS.
    """

    def __init__(self, labels: Mapping[str, str]) -> None:
        unknown = labels.keys() - set(LABELS)
        assert not unknown, unknown
        self._labels = {name: labels.get(name, "") for name in LABELS}
        self._current: dict[str, float] = {}
        self._refreshed = time.monotonic()

    def set(self, record: Mapping[str, float]) -> None:
        """Show the values of a record, those of earlier ones besides; infinite ones and NaN are shown as they are."""
        self._current |= record
        self._set(record)

    def refresh(self) -> None:
        """Show the newest values again, once a second at most. Cost: half a millisecond."""
        now = time.monotonic()
        if self._current and now - self._refreshed >= _REFRESH_S:
            self._refreshed = now
            self._set(self._current)

    def close(self) -> None:
        """Say that the run or search has ended, and let its values go."""
        if self._current:
            self._set({"run/active": 0.0})
            self._current.clear()

    def _set(self, record: Mapping[str, float]) -> None:
        import ray

        if not ray.is_initialized():
            return
        for name, value in record.items():
            group, _, rest = name.partition("/")
            quantity, _, part = rest.partition("/")
            metric = METRIC_BY_NAME[f"{group}/{quantity}"]
            _gauge(metric).set(float(value), tags={**self._labels, "part": part})


@cache
def _gauge(metric: Metric) -> Any:
    from ray.util.metrics import Gauge

    return Gauge(gauge_name(metric), description=f"{metric.description} [{metric.unit}]", tag_keys=LABELS)
