"""Two GPUs against one at every ZeRO stage, and a run that goes on with one and with two again; skipped elsewhere."""

from typing import Any

import pytest
import torch

from tests.gpu.pair_worker import LAST, SAVED_AGAIN_AT, run_each
from tests.processes import run_group

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")]

STAGES = [0, 1, 2, 3]
TOLERANCE = 0.01
"""Of a loss: bfloat16 keeps 8 bits, and sums in another order move codes that are on an edge."""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = str(tmp_path_factory.mktemp("saved"))
    results: dict[str, Any] = {}
    for size, part in ((2, "all"), (1, "all"), (1, "goes on"), (2, "goes on again")):
        results |= run_group(run_each, size, STAGES, root, part, backend="nccl")
    return results


@pytest.mark.parametrize("stage", STAGES)
def test_two_gpus_agree_with_one(found: dict[str, Any], stage: int) -> None:
    two, one = found[f"{stage} 2 all"]["losses"], found[f"{stage} 1 all"]["losses"]
    assert two == pytest.approx(one, rel=TOLERANCE)
    assert two[LAST - 1] < two[0] * 0.99


def test_stages_agree(found: dict[str, Any]) -> None:
    losses = [found[f"{stage} 2 all"]["losses"] for stage in STAGES]
    assert losses[0] == losses[1] == losses[2]
    assert losses[3] == pytest.approx(losses[1], rel=TOLERANCE)


@pytest.mark.parametrize("stage", STAGES)
def test_one_goes_on_and_then_two_again(found: dict[str, Any], stage: int) -> None:
    expected = found[f"{stage} 2 all"]["losses"]
    went_on = found[f"{stage} 1 goes on"]["losses"] | found[f"{stage} 2 goes on again"]["losses"]
    assert min(went_on) < SAVED_AGAIN_AT <= max(went_on)
    assert went_on == pytest.approx({step: expected[step] for step in went_on}, rel=TOLERANCE)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_gradients_travel_once_per_step(found: dict[str, Any], stage: int) -> None:
    measured = found[f"{stage} 2 all"]
    expected = 2 * measured["num_trained"] * (1.0 if stage == 0 else 1.5)
    assert all(expected <= sent <= expected + 1024 for sent in measured["sent"])
