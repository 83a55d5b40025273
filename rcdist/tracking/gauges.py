"""The newest metrics of a run or a search for Prometheus: gauges of Ray's, which the agent of every node exports."""

import math
from collections.abc import Mapping
from functools import cache
from typing import Any

from rcdist.tracking.metrics import METRIC_BY_NAME, Metric

LABELS = ("run", "experiment", "plan", "sweep", "part")
"""Labels of every gauge; what does not apply is empty. `part`: of a metric that has parts, the module or objective."""


def gauge_name(metric: Metric) -> str:
    """Return the name of a metric's gauge; Prometheus has it with `ray_` before it."""
    return f"rcdist_{metric.name.replace('/', '_')}"


class Gauges:
    """Set one gauge per metric of what this process follows; without a connected Ray nothing is set.

    Ray keeps the values of a process until it ends: `close` marks them as no longer current.

    Args:
        labels: by name in LABELS.
    """

    def __init__(self, labels: Mapping[str, str]) -> None:
        unknown = labels.keys() - set(LABELS)
        assert not unknown, unknown
        self._labels = {name: labels.get(name, "") for name in LABELS}

    def set(self, record: Mapping[str, float]) -> None:
        """Show the values of a record; infinite ones and NaN are shown as they are."""
        import ray

        if not ray.is_initialized():
            return
        for name, value in record.items():
            group, _, rest = name.partition("/")
            quantity, _, part = rest.partition("/")
            metric = METRIC_BY_NAME[f"{group}/{quantity}"]
            _gauge(metric).set(float(value), tags={**self._labels, "part": part})

    def close(self) -> None:
        """Say that the run or search has ended: alerts look at what is active only."""
        self.set({"run/active": 0.0, "run/record_time_s": math.nan})


@cache
def _gauge(metric: Metric) -> Any:
    from ray.util.metrics import Gauge

    return Gauge(gauge_name(metric), description=f"{metric.description} [{metric.unit}]", tag_keys=LABELS)
