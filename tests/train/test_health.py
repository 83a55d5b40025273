"""Health of weights, gates, states and frozen bytes: by hand, and on two real processes under ZeRO 2 and 3."""

from typing import Any

import pytest
import torch

from rcdist.ops.quantise import quantise_weight
from rcdist.tracking.metrics import check_record
from rcdist.train.health import effective_rank, sample_codes, saturation
from tests.train.zero_worker import build_model, job


def test_effective_rank_by_hand() -> None:
    assert effective_rank(torch.randn(40, 1) * torch.randn(1, 8)) == pytest.approx(1.0, abs=1e-3)
    assert effective_rank(torch.eye(8)) == pytest.approx(8.0)
    # Singular values 3 and 1: exp of the entropy of (0.75, 0.25).
    assert effective_rank(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(1.7548, abs=1e-3)
    assert effective_rank(torch.zeros(4, 8)) == 0.0
    assert effective_rank(torch.randn(5000, 300)) < 256


def test_saturation_by_hand() -> None:
    assert saturation(torch.tensor([0.005, 0.5, 0.995, 0.98])) == 0.5


def test_sampled_codes_are_those_of_the_whole_matrix() -> None:
    weight = torch.randn(37, 41)
    assert torch.equal(sample_codes(weight, 7), quantise_weight(weight).values.flatten()[::7])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["health-2", "health-3"])
def test_readings_under_zero(zero: dict[str, Any], name: str) -> None:
    first, second, damaged, refused = zero[name]
    digests = [reading["reservoir/digest_ok"] for reading in (first, second, damaged)]
    assert digests == [1.0, 1.0, 0.0]
    stage = int(name[-1])
    model = build_model(job(stage))
    weights = {name.removesuffix(".weight"): p for name, p in model.named_parameters() if "_proj.weight" in name}
    weights["head"] = model.head.weight
    for reading in (first, second):
        check_record(reading)
        assert {name.rpartition("/")[2] for name in reading if name.startswith("ternary/zero_fraction/")} == set(
            weights
        )
        assert all(0 < reading[f"ternary/zero_fraction/{name}"] < 1 for name in weights)
        assert 1 <= reading["reservoir/effective_rank"] <= 16
        assert 0 <= reading["gate/saturation"] < 1
        assert "gate/saturation/blocks.2" in reading
    zeros = float((quantise_weight(weights["blocks.0.mlgru.c_proj"]).values == 0).double().mean())
    assert first["ternary/zero_fraction/blocks.0.mlgru.c_proj"] == pytest.approx(zeros, abs=0 if stage == 2 else 0.01)
    assert "ternary/flip_rate" not in first
    # One step at learning rate 0.1 turns many codes.
    assert 0.1 < second["ternary/flip_rate"] < 1
    (message,) = refused
    assert "rank 1" in message and message.startswith("reservoir matrix ")
    assert len(
        [word for word in message.replace(":", " ").replace(".", " ").replace("=", " ").split() if len(word) == 64]
    )
