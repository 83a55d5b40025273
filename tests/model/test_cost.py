"""Counts from the configuration equal counts on the real module, and give the published shares."""

import pytest
import torch

from rcdist.config import Architecture, ModelConfig, ReservoirConfig
from rcdist.model.cost import MatrixCost, count_parameters, estimate_flops, list_matrices
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
        model = LanguageModel(Architecture(config, reservoir), build_bank(Architecture(config, reservoir)), 0)
    check_counts(config, reservoir, model)


@pytest.mark.parametrize("norm", ["shared", "per_projection"])
@pytest.mark.parametrize("topology", ["dense", "block", "hadamard", "ring", "identity"])
@pytest.mark.parametrize(
    "choice",
    [
        {"plan": "c+r T", "placement": "post_scan", "leak_rate": 0.5},
        {"plan": "c+r@a T", "placement": "recurrent", "output_gate": "tied"},
        {"plan": "co T+r", "placement": "reset_gate", "output_gate": "none", "gain": {"c": False}},
        {"plan": "c T+r@a", "placement": "token_shift", "leak_rate": 0.5, "output_gate": "none"},
        {"plan": "T g@a", "placement": "gate", "gain": {"g": False}},
    ],
    ids=lambda choice: choice["placement"],
)
def test_counts_of_the_whole_family(choice: dict, topology: str, norm: str) -> None:
    config = ModelConfig(num_layers=7, width=24, glu_width=48, vocab_size=50, norm=norm)
    reservoir = ReservoirConfig(**choice, topology=topology, block_size=6)
    with torch.device("meta"):
        model = LanguageModel(Architecture(config, reservoir), build_bank(Architecture(config, reservoir)), 0)
    check_counts(config, reservoir, model)


def check_counts(config: ModelConfig, reservoir: ReservoirConfig, model: LanguageModel) -> None:
    counts = count_parameters(Architecture(config, reservoir))
    assert counts.trained == sum(parameter.numel() for parameter in model.parameters())
    ternary = [buffer for name, buffer in model.named_buffers() if name.endswith("-ternary")]
    assert counts.frozen_unique == sum(buffer.numel() for buffer in ternary)
    assert counts.stored == counts.trained + counts.frozen_unique
    assert counts.frozen == sum(
        row.num_weights for row in list_matrices(Architecture(config, reservoir)) if row.is_frozen
    )


@pytest.mark.parametrize(
    ("reservoir", "stored", "train", "inference"),
    [
        ({"plan": "c@a"}, -6.4, -2.5, 0.0),
        ({"plan": "cf@a"}, -12.9, -4.9, 0.0),
        ({"plan": "co@a"}, -12.9, -4.9, 0.0),
        ({"plan": "cfg@a"}, -19.3, -7.4, 0.0),
        ({"plan": "co@a", "output_gate": "none"}, -19.6, -12.3, -7.4),
        ({"plan": "co@a", "output_gate": "tied"}, -19.6, -12.3, -7.4),
        ({"plan": "co@a", "leak_rate": 0.5}, -19.6, -12.3, -7.4),
        ({"plan": "G@a"}, -17.7, -6.8, 0.0),
        ({"plan": "G@a", "topology": "hadamard"}, -18.5, -20.1, -20.1),
        ({"plan": "c=@a"}, -6.4, 0.0, 0.0),
    ],
)
def test_shares_at_370m(reservoir: dict, stored: float, train: float, inference: float) -> None:
    """Rows of MODEL section 2, within 0.1 point, and a control."""
    baseline, changed = ReservoirConfig(plan="T"), ReservoirConfig(**reservoir)
    counts = (
        count_parameters(Architecture(M370, changed)).stored / count_parameters(Architecture(M370, baseline)).stored
    )
    flops, base = estimate_flops(Architecture(M370, changed)), estimate_flops(Architecture(M370, baseline))
    found = [100 * (ratio - 1) for ratio in (counts, flops.train / base.train, flops.prefill / base.prefill)]
    assert found == pytest.approx([stored, train, inference], abs=0.1)
    assert flops.decode == flops.prefill


def test_cost_of_each_topology_by_hand() -> None:
    config = ModelConfig(num_layers=1, width=1024, glu_width=2816)

    def row(letter: str, topology: str) -> MatrixCost:
        reservoir = ReservoirConfig(plan=letter, topology=topology, block_size=64)
        return next(row for row in list_matrices(Architecture(config, reservoir)) if row.letter == letter)

    dense, block, hadamard, ring = (row("c", topology) for topology in ("dense", "block", "hadamard", "ring"))
    assert [r.num_weights for r in (dense, block, hadamard, ring)] == [1024**2, 1024 * 64, 0, 0]
    assert [r.forward_flops for r in (dense, block, hadamard, ring)] == [2 * 1024**2, 2 * 1024 * 64, 2 * 10240, 0]
    assert all(r.train_flops == 2 * r.forward_flops for r in (dense, block, hadamard, ring))
    # One byte per entry or sign, four per index.
    assert [r.resident_bytes(4) for r in (dense, block, hadamard, ring)] == [2**20, 2**16 + 256, 2048, 4096]
    assert row("G", "hadamard").forward_flops == row("D", "hadamard").forward_flops == (1 + 3) * 10240
    trained = next(r for r in list_matrices(Architecture(config, ReservoirConfig(plan="T"))) if r.letter == "c")
    assert (trained.resident_bytes(2), trained.train_flops) == (2**21, 6 * 2**20)


def test_flops_by_hand() -> None:
    config = ModelConfig(num_layers=2, width=8, glu_width=16, vocab_size=32)
    flops = estimate_flops(Architecture(config, ReservoirConfig(plan="T cG@a")))
    block, head, frozen = 4 * 64 + 3 * 128, 256, 64 + 128
    assert flops.prefill == flops.decode == 2 * (2 * block + head)
    assert flops.train == flops.hardware == 6 * (2 * block + head) - 2 * frozen
    again = estimate_flops(Architecture(config, ReservoirConfig(plan="T cG@a")), activation_checkpointing=True)
    assert again.train == flops.train
    assert again.hardware == flops.train + 2 * 2 * block


def test_rows_of_the_table() -> None:
    config = ModelConfig(num_layers=2, width=8, glu_width=16, vocab_size=32)
    rows = list_matrices(Architecture(config, ReservoirConfig(plan="T c@a+r")))
    assert len(rows) == 7 + 8 + 1
    row = next(row for row in rows if row.layer == 1 and row.letter == "c")
    assert (row.key, row.shape, row.is_frozen, row.forward_flops, row.train_flops) == ("c@a", (8, 8), True, 128, 256)
    assert {row.key for row in rows} >= {"c.0", "r.1", "head"}
