"""Counts from the configuration equal counts on the real module, and give the published shares."""

import pytest
import torch

from rcdist.config import ModelConfig, ReservoirConfig
from rcdist.model.cost import count_parameters, estimate_flops, list_matrices
from rcdist.model.lm import LanguageModel
from rcdist.model.reservoir import build_bank

M370 = ModelConfig(num_layers=24, width=1024, glu_width=2816, vocab_size=32000)


@pytest.mark.parametrize("plan", ["T", "T cG@a", "fcgoGUD@a T", "c=@a fD", "o+r T+r@b c=@x+r@b"])
@pytest.mark.parametrize("norm", ["shared", "per_projection"])
@pytest.mark.parametrize("gain", [False, True])
def test_counts_equal_the_module(plan: str, norm: str, gain: bool) -> None:
    config = ModelConfig(num_layers=7, width=24, glu_width=40, vocab_size=50, norm=norm)
    reservoir = ReservoirConfig(plan=plan, gain=gain)
    with torch.device("meta"):
        model = LanguageModel(config, reservoir, build_bank(config, reservoir), 0)
    counts = count_parameters(config, reservoir)
    assert counts.trained == sum(parameter.numel() for parameter in model.parameters())
    assert counts.frozen_unique == sum(buffer.numel() for buffer in model.buffers())
    assert counts.stored == counts.trained + counts.frozen_unique
    assert counts.frozen == sum(row.num_weights for row in list_matrices(config, reservoir) if row.is_frozen)


@pytest.mark.parametrize(
    ("plan", "stored", "train"),
    [
        ("c@a", -6.4, -2.5),
        ("cf@a", -12.9, -4.9),
        ("cfg@a", -19.3, -7.4),
        ("G@a", -17.7, -6.8),
        ("c=@a", -6.4, 0.0),
    ],
)
def test_shares_at_370m(plan: str, stored: float, train: float) -> None:
    baseline, changed = ReservoirConfig(plan="T"), ReservoirConfig(plan=plan)
    counts = count_parameters(M370, changed).stored / count_parameters(M370, baseline).stored
    assert abs(100 * (counts - 1) - stored) < 0.1
    flops, base = estimate_flops(M370, changed), estimate_flops(M370, baseline)
    assert abs(100 * (flops.train / base.train - 1) - train) < 0.1
    assert flops.decode == base.decode


def test_flops_by_hand() -> None:
    config = ModelConfig(num_layers=2, width=8, glu_width=16, vocab_size=32)
    flops = estimate_flops(config, ReservoirConfig(plan="T cG@a"))
    block, head, frozen = 4 * 64 + 3 * 128, 256, 64 + 128
    assert flops.prefill == flops.decode == 2 * (2 * block + head)
    assert flops.train == flops.hardware == 6 * (2 * block + head) - 2 * frozen
    again = estimate_flops(config, ReservoirConfig(plan="T cG@a"), activation_checkpointing=True)
    assert again.train == flops.train
    assert again.hardware == flops.train + 2 * 2 * block


def test_rows_of_the_table() -> None:
    config = ModelConfig(num_layers=2, width=8, glu_width=16, vocab_size=32)
    rows = list_matrices(config, ReservoirConfig(plan="T c@a+r"))
    assert len(rows) == 7 + 8 + 1
    row = next(row for row in rows if row.layer == 1 and row.letter == "c")
    assert (row.key, row.shape, row.is_frozen, row.forward_flops, row.train_flops) == ("c@a", (8, 8), True, 128, 256)
    assert {row.key for row in rows} >= {"c.0", "r.1", "head"}
