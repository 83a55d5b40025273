"""Runs with one and with two workers: what they send is what the estimate says, and nothing of it is frozen."""

from pathlib import Path

import pytest
import torch

from rcdist.benchmark.scaling import measure_scaling
from tests.conftest import ROOT

PRESET = """# A small model.
model: {num_layers: 2, width: 32, glu_width: 64, vocab_size: 300}
reservoir: {plan: cG@a}
data: {seq_len: 16}
"""


@pytest.mark.exhaustive
def test_what_travels_is_what_was_predicted(tmp_path: Path) -> None:
    preset = tmp_path / "small.yaml"
    preset.write_text(PRESET)
    script = ROOT / "jobs" / "pretrain.py"
    found = measure_scaling(script, str(preset), [1, 2], [1], 4, 2, torch.device("cpu"), steps=8)["scaling"]
    assert set(found) == {"stage 1, 1 workers", "stage 1, 2 workers"}
    for row in found.values():
        measured, predicted = row["measured"], row["predicted"]
        assert measured["bytes_per_step"] == predicted["bytes_per_step"]
        assert measured["frozen_bytes_per_step"] == 0
        assert measured["tokens_per_s"] > 0 and measured["startup_s"] > 0
    assert found["stage 1, 1 workers"]["measured"]["efficiency"] == 1
