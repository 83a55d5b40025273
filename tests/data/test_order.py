"""The order of windows: a bijection for every size, different by epoch and seed."""

from hypothesis import given, settings
from hypothesis import strategies as st

from rcdist.data.order import locate, permute


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 700), st.integers(0, 2**62), st.integers(0, 5))
def test_every_index_is_hit_once(size: int, seed: int, epoch: int) -> None:
    assert sorted(permute(i, size, seed, epoch) for i in range(size)) == list(range(size))


def test_epochs_and_seeds_have_orders_of_their_own_and_the_order_is_mixed() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return [permute(i, 1000, seed, epoch) for i in range(1000)]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)
    rises = sum(a < b for a, b in zip(order(0, 0), order(0, 0)[1:], strict=False))
    assert 430 < rises < 570  # half of 999 within four deviations and some


def test_the_cursor_runs_through_the_epochs() -> None:
    assert [locate(c, 3, 7)[0] for c in range(7)] == [0, 0, 0, 1, 1, 1, 2]
    assert {locate(c, 3, 7)[1] for c in range(3, 6)} == {0, 1, 2}


def test_the_order_of_a_large_corpus_is_fixed_for_ever() -> None:
    assert permute(0, 10**9, 0, 0) == 951_007_673
