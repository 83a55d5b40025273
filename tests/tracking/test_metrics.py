"""The list of metrics: names have a group and are unique; a record outside of it fails."""

import re

import pytest

from rcdist.tracking.metrics import METRIC_BY_NAME, METRICS, check_record


def test_every_name_has_one_group_and_stands_once() -> None:
    assert len(METRIC_BY_NAME) == len(METRICS)
    for metric in METRICS:
        assert re.fullmatch(r"[a-z]+/[a-z0-9_]+", metric.name), metric.name
        assert metric.unit
        assert metric.description


def test_unit_is_the_end_of_the_name() -> None:
    ends = {"nats/token": "_nats", "s": "_s", "bytes": "bytes", "USD": "usd", "kWh": "kwh", "tokens": "tokens"}
    for metric in METRICS:
        if metric.unit in ends and not metric.name.endswith("bytes_per_step"):
            assert metric.name.endswith(ends[metric.unit]), metric.name


def test_unknown_name_is_a_programming_error() -> None:
    check_record({"train/loss_nats": 1.0})
    check_record({"ternary/flip_rate/blocks.0.mlgru.c_proj": 0.1})
    for name in ("train/los_nats", "train/loss_nats/blocks.0", "ternary/flip"):
        with pytest.raises(AssertionError, match=name):
            check_record({name: 1.0})
