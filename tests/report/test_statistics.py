"""Differences and intervals are scipy's, areas are computed by hand, importance finds what matters."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rcdist.report.statistics import area_under_curve, mean_interval, paired_difference, parameter_importance

numbers = st.lists(st.tuples(st.floats(-10, 10), st.floats(-10, 10)), min_size=2, max_size=12)


@given(numbers)
def test_paired_difference_is_scipys(pairs: list[tuple[float, float]]) -> None:
    values, baseline = zip(*pairs, strict=True)
    found = paired_difference(values, baseline)
    expected = stats.ttest_rel(values, baseline).confidence_interval(0.95)
    assert found.mean == pytest.approx(sum(a - b for a, b in pairs) / len(pairs), abs=1e-9)
    # Of equal differences scipy has no spread to divide by.
    if expected.low == expected.low:
        assert found.low == pytest.approx(expected.low, rel=1e-6, abs=1e-9)
        assert found.high == pytest.approx(expected.high, rel=1e-6, abs=1e-9)


def test_mean_interval_is_scipys() -> None:
    values = [2.0, 2.1, 1.9, 2.3]
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    found = mean_interval(values)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_one_pair_has_no_interval() -> None:
    found = paired_difference([2.0], [2.5])
    assert (found.mean, found.low, found.high, found.pairs) == (-0.5, None, None, 1)


def test_area_is_the_mean_of_the_curve_up_to_the_common_cost() -> None:
    curve = [(100.0, 4.0), (200.0, 2.0), (400.0, 1.0)]
    # Cost 10, 20, 40; up to 30: 4 -> 2 over 10, then 2 -> 1.5 over 10.
    assert area_under_curve(curve, 0.1, 30.0) == pytest.approx((3.0 * 10 + 1.75 * 10) / 20)
    assert area_under_curve(curve, 0.1, 40.0) == pytest.approx((3.0 * 10 + 1.5 * 20) / 30)
    assert area_under_curve(curve, 0.1, 41.0) is None
    assert area_under_curve(curve, 0.1, 10.0) is None
    assert area_under_curve(curve[:1], 0.1, 10.0) is None


def test_importance_finds_the_parameter_that_matters() -> None:
    draw = random.Random(0)
    rows = []
    for _ in range(60):
        picked = {"plan": draw.choice(["a", "b"]), "scale": draw.random(), "constant": 1}
        if picked["plan"] == "a":
            picked["when"] = draw.choice([1, {"c": 2}])
        rows.append((picked, 3.0 * (picked["plan"] == "a") + 0.1 * picked["scale"]))
    shares = parameter_importance(rows)
    assert next(iter(shares)) == "plan" or next(iter(shares)) == "when"
    assert shares["scale"] < 0.1
    assert "constant" not in shares
    assert sum(shares.values()) == pytest.approx(1.0)
    assert parameter_importance(rows[:3]) == {}
    assert parameter_importance([({"a": i}, 1.0) for i in range(9)]) == {}
