"""Gauges: one per metric, with names that Prometheus accepts; what a real scrape has is in tests/test_dashboards."""

import re

import pytest

from rcdist.tracking.gauges import LABELS, Gauges, gauge_name
from rcdist.tracking.metrics import METRICS


def test_every_metric_has_a_name_of_its_own() -> None:
    names = [gauge_name(metric) for metric in METRICS]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"rcdist_[a-z0-9_]+", name) for name in names)


def test_without_a_ray_nothing_is_set() -> None:
    gauges = Gauges({"run": "tiny"})
    gauges.set({"train/loss_nats": 1.0, "gate/saturation/blocks.0": 0.5})
    gauges.close()


def test_labels_are_of_one_list() -> None:
    assert "part" in LABELS
    with pytest.raises(AssertionError, match="colour"):
        Gauges({"colour": "red"})
