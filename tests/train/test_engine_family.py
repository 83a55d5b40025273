"""Members of the reservoir family under ZeRO 2 in two processes: every placement, topology and gate; all of them."""

import math
from typing import Any

import pytest

from tests.train.conftest import names
from tests.train.family_worker import FAMILY_STEPS, list_family

pytestmark = pytest.mark.slow

SOME = (
    "family-post_scan-dense-full",
    "family-post_scan-hadamard-tied",
    "family-recurrent-ring-none",
    "family-recurrent-dense-tied",
    "family-reset_gate-block-full",
    "family-token_shift-hadamard-none",
    "family-gate-g-block-full",
    "family-gate-f-ring-tied",
    "family-token_shift-identity-full",
    "family-recurrent-leak",
)
"""Each placement, topology, output gate and kind of leak at least once."""


def test_the_family_is_complete() -> None:
    # Five placements with the gate's two choices, five topologies, three output gates; W_g only with a full gate.
    assert len(list_family()) == 5 * (5 * 3 + 1) + 5


@pytest.mark.parametrize("name", names(*(f"family-{member}" for member in list_family()), some=SOME))
def test_a_member_trains_and_sends_no_frozen_byte(zero: dict[str, Any], name: str) -> None:
    losses, sent = zero[name]["losses"], zero[name]["sent"]
    assert len(losses) == FAMILY_STEPS and all(math.isfinite(loss) for loss in losses)
    assert min(losses[-3:]) < losses[0] - 0.005
    assert {one["frozen"] for one in sent} == {0}
    assert all(one["trained"] > 0 for one in sent)
    # Members are different models: no two begin or end with the same losses.
    twins = [other for other in zero if other.startswith("family-") and zero[other]["losses"] == losses]
    assert twins == [name]
