"""What a run takes: memory, time and money are those of the workers."""

import pytest

from rcdist.cluster import Workers
from rcdist.config import JobConfig
from rcdist.estimate.run import describe_run, format_run
from rcdist.model.cost import count_parameters, estimate_flops
from rcdist.tracking.prices import PriceRow

PRICE = PriceRow("row", "spot", usd_per_device_hour=3.6, peak_flops=1e12, watts=500, source="test")


@pytest.mark.parametrize(
    ("stage", "precision", "graphs", "bytes_per_weight"),
    [
        (0, "fp32", False, 16),
        (1, "fp32", False, 8 + 12 / 4),
        # Gradients in bf16, and a float32 copy for the optimizer.
        (2, "bf16", False, 2 + (2 + 4 + 12) / 4),
        (3, "bf16", True, 20 / 4),
        # Weights and float32 sums of gradients; then what is partitioned.
        (0, "fp32", True, 4 + 4 + 8),
        (2, "bf16", True, 2 + 4 + 12 / 4),
    ],
)
def test_memory_is_what_zero_leaves_each_worker(
    stage: int, precision: str, graphs: bool, bytes_per_weight: float
) -> None:
    config = JobConfig(train={"zero_stage": stage, "precision": precision, "cuda_graphs": graphs})
    counts = count_parameters(config.architecture)
    found = describe_run(config, Workers(4, True, 1.0), PRICE)["memory_bytes_per_worker"]
    assert found == pytest.approx(bytes_per_weight * counts.trained, abs=2)


def test_the_least_time_and_money_are_those_at_peak_speed() -> None:
    config = JobConfig(train={"activation_checkpointing": True})
    flops = estimate_flops(config.architecture, activation_checkpointing=True).hardware
    total = 600 * 4096 * flops
    found = describe_run(config, Workers(4, True, 1.0), PRICE)
    assert found["least_s"] == pytest.approx(total / 4e12)
    assert found["least_usd"] == pytest.approx(total / 1e12 / 1000)
    text = format_run(config, Workers(4, True, 1.0, min_workers=2), PRICE)
    assert "2 to 4 GPU workers" in text and "3.6 USD per device hour (row, spot)" in text
