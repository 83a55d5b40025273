"""Interleaving, and the ratio of pairs with its interval."""

import pytest

from rcdist.benchmark.pairs import measure_pairs, ratio


def test_arms_alternate_and_warm_up_is_not_counted() -> None:
    order: list[str] = []
    seconds = measure_pairs({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, pairs=3, warm_up=1)
    assert "".join(order) == "abbaabba"
    assert [len(times) for times in seconds.values()] == [3, 3]


def test_ratio_by_hand() -> None:
    found = ratio([1.0, 2.0, 9.0], [2.0, 2.0, 3.0])
    assert found["median"] == 1.0
    assert (found["low"], found["high"]) == (0.5, 3.0)
    assert ratio([3.0] * 7, [2.0] * 7) == pytest.approx(dict.fromkeys(found, 1.5))
