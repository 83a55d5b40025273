"""Schedules against hand-worked values, and which parameters decay."""

import itertools
import math

import pytest
from torch import nn

from rcdist.config import OptimizerConfig, ScheduleConfig
from rcdist.train.optim import build_parameter_groups, learning_rate_at, weight_decay_at

PEAK = OptimizerConfig(learning_rate=0.01, weight_decay=0.1)


def rates(num_steps: int, **schedule: object) -> list[float]:
    config = ScheduleConfig(**schedule)
    return [learning_rate_at(step, num_steps, PEAK, config) for step in range(num_steps)]


@pytest.mark.parametrize("kind", ["cosine", "wsd", "two_stage"])
def test_warmup_is_linear_and_reaches_the_peak_on_its_last_step(kind: str) -> None:
    values = rates(100, kind=kind, warmup_fraction=0.1)
    assert values[:10] == pytest.approx([0.001 * (i + 1) for i in range(10)])
    assert max(values) == pytest.approx(0.01)


def test_cosine_ends_at_the_final_ratio_and_is_half_way_in_the_middle() -> None:
    values = rates(101, warmup_fraction=0.0, final_ratio=0.2)
    assert values[0] == pytest.approx(0.01)
    assert values[50] == pytest.approx(0.01 * (0.2 + 0.8 * 0.5))
    assert values[100] == pytest.approx(0.002)
    assert all(a >= b for a, b in itertools.pairwise(values))


def test_wsd_is_flat_then_falls_linearly() -> None:
    values = rates(101, kind="wsd", warmup_fraction=0.0, decay_fraction=0.2, final_ratio=0.0)
    assert values[:81] == [0.01] * 81
    assert values[90] == pytest.approx(0.005)
    assert values[100] == pytest.approx(0.0)


def test_wsd_without_decay_stays_at_the_peak() -> None:
    assert rates(10, kind="wsd", warmup_fraction=0.0, decay_fraction=0.0) == [0.01] * 10


def test_two_stage_halves_the_rate_and_drops_the_decay() -> None:
    cosine = rates(100, kind="cosine")
    two_stage = rates(100, kind="two_stage")
    assert two_stage[:50] == cosine[:50]
    assert two_stage[50:] == pytest.approx([rate / 2 for rate in cosine[50:]])
    config = ScheduleConfig(kind="two_stage")
    assert weight_decay_at(49, 100, PEAK, config) == 0.1
    assert weight_decay_at(50, 100, PEAK, config) == 0.0


@pytest.mark.parametrize("kind", ["cosine", "wsd", "two_stage"])
def test_one_step_runs_have_a_finite_positive_rate(kind: str) -> None:
    (rate,) = rates(1, kind=kind)
    assert math.isfinite(rate) and rate > 0


def test_only_matrices_decay() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)
            self.lower_bounds = nn.Linear(4, 5, bias=False)

    decay, no_decay = build_parameter_groups(Net(), 0.3)
    assert [tuple(p.shape) for p in decay["params"]] == [(2, 3)]
    assert [tuple(p.shape) for p in no_decay["params"]] == [(2,), (5, 4)]
    assert (decay["weight_decay"], no_decay["weight_decay"]) == (0.3, 0.0)
