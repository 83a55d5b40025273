"""The front is exactly the non-dominated set, and its hypervolume what counting gives."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcdist.report.pareto import dominates, find_front, hypervolume

# Few distinct values, so that ties and equal points come up.
value = st.integers(0, 6).map(float)
points2 = st.lists(st.tuples(value, value), max_size=30)


@given(st.one_of(points2, st.lists(st.tuples(value), max_size=10)))
def test_front_is_the_non_dominated_set(points: list[tuple[float, ...]]) -> None:
    front = set(find_front(points))
    for i, point in enumerate(points):
        better = [q for q in points if all(a <= b for a, b in zip(q, point, strict=True)) and q != point]
        assert (i in front) == (not better)


@given(points2)
def test_nothing_outside_is_undominated_and_nothing_inside_dominates(points: list[tuple[float, ...]]) -> None:
    front = find_front(points)
    for i, j in itertools.permutations(front, 2):
        assert not dominates(points[i], points[j])
    for i in set(range(len(points))) - set(front):
        assert any(dominates(points[j], points[i]) for j in front)


@given(points2)
def test_hypervolume_is_the_number_of_dominated_cells(points: list[tuple[float, float]]) -> None:
    """All coordinates are whole: the area is the number of unit cells below the reference that some point dominates."""
    side = 5
    covered = np.zeros((side, side), dtype=bool)
    for x, y in points:
        covered[int(x) :, int(y) :] = True
    assert hypervolume(points, (float(side), float(side))) == covered.sum()


def test_hypervolume_of_one_objective_is_a_length() -> None:
    assert hypervolume([(3.0,), (1.5,), (9.0,)], (4.0,)) == 2.5
    assert hypervolume([(9.0,)], (4.0,)) == 0.0
    assert hypervolume([], (4.0, 4.0)) == 0.0


def test_hypervolume_is_optunas() -> None:
    from optuna._hypervolume import compute_hypervolume

    points, reference = np.random.default_rng(0).random((40, 2)), np.array([0.9, 0.8])
    expected = compute_hypervolume(points[(points < reference).all(axis=1)], reference)
    assert hypervolume([(float(x), float(y)) for x, y in points], (0.9, 0.8)) == pytest.approx(expected)
