"""What the guard does about a loss that jumps, by hand, and that every limit of the configuration decides."""

import math

from hypothesis import given
from hypothesis import strategies as st

from rcdist.checkpoint.state import SpikeState
from rcdist.config import DivergenceConfig
from rcdist.train.divergence import SpikeGuard, describe_limit


def guard(state: SpikeState | None = None, **settings: object) -> SpikeGuard:
    return SpikeGuard(DivergenceConfig(**settings), state or SpikeState())


def test_the_limit_is_the_median_and_z_spreads_above() -> None:
    losses = [4.0] * 8 + [5.0] * 4 + [3.0] * 5
    watch = guard(SpikeState(losses), spike_z=8)
    # Median 4; distances: 8 zeros, 9 ones; their median is 1.
    assert watch.limit() == 4.0 + 8 * 1.4826
    assert describe_limit(losses, watch.limit()) == "limit 15.8608, median 4.0000 of 17 steps"


def test_few_losses_no_limit_and_a_flat_loss_has_five_percent_of_room() -> None:
    assert guard(SpikeState([4.0] * 15)).limit() == math.inf
    assert guard(SpikeState([4.0] * 16)).limit() == 4.2
    assert guard(SpikeState([4.0] * 16), spike_z=None).limit() == math.inf
    assert describe_limit([], math.inf) == "no limit yet"


def test_skips_then_rolls_back_then_stops() -> None:
    watch = guard(max_skipped=1, max_rollbacks=1, window_steps=16)
    actions = [watch.observe(step, 9.0, applied=False) for step in range(1, 5)]
    assert actions == ["go_on", "roll_back", "go_on", "stop"]
    assert watch.state.rollbacks == 1


def test_skipped_steps_that_are_long_past_are_forgotten() -> None:
    watch = guard(max_skipped=1, window_steps=16)
    assert watch.observe(1, 9.0, applied=False) == "go_on"
    assert watch.observe(17, 9.0, applied=False) == "go_on"
    assert watch.observe(32, 9.0, applied=False) == "roll_back"


@given(st.lists(st.floats(0.1, 20), max_size=100))
def test_only_applied_losses_of_the_window_are_kept(losses: list[float]) -> None:
    watch = guard(window_steps=16)
    for step, loss in enumerate(losses, start=1):
        assert watch.observe(step, loss, applied=step % 3 != 0) in ("go_on", "roll_back", "stop")
    kept = [loss for step, loss in enumerate(losses, start=1) if step % 3 != 0]
    assert watch.state.losses == kept[-16:]
