"""A trial is stopped only where everything it could still reach is dominated."""

from hypothesis import given
from hypothesis import strategies as st

from rcdist.report.pareto import dominates
from rcdist.sweep.stopper import MIN_FINISHED, SLACK, find_dominating, lower_bound

FINISHED = [[(10.0, 3.0), (20.0, 2.5), (30.0, 2.0 + 0.1 * i)] for i in range(MIN_FINISHED)]


def test_bound_is_the_largest_improvement_from_there_and_a_quarter() -> None:
    assert lower_bound([(10.0, 3.4)], FINISHED) == 3.4 - 1.0 * (1 + SLACK)
    assert lower_bound([(10.0, 3.4), (20.0, 3.0)], FINISHED) == 3.0 - 0.5 * (1 + SLACK)


def test_too_little_is_known() -> None:
    assert lower_bound([(10.0, 3.4)], FINISHED[1:]) is None
    assert lower_bound([(15.0, 3.4)], FINISHED) is None


def test_a_quality_that_got_worse_is_no_improvement() -> None:
    worse = [[(10.0, 2.0), (30.0, 2.5)]] * MIN_FINISHED
    assert lower_bound([(10.0, 3.0)], worse) == 3.0


numbers = st.floats(0.1, 9.0)


@given(bound=numbers, cost=numbers, finished=st.lists(st.tuples(numbers, numbers), max_size=8), gain=st.floats(0, 3))
def test_whoever_is_stopped_ends_dominated(
    bound: float, cost: float, finished: list[tuple[float, float]], gain: float
) -> None:
    """Whatever quality at or above its bound a stopped trial would have reached, a finished one dominates it."""
    found = find_dominating(bound, cost, finished)
    if found is not None:
        assert dominates(found, (bound + gain, cost))
    else:
        assert not any(dominates(point, (bound, cost)) for point in finished)


def test_one_objective() -> None:
    assert find_dominating(2.0, None, [(2.0,), (1.9,)]) == (1.9,)
    assert find_dominating(1.9, None, [(2.0,), (1.9,)]) is None
