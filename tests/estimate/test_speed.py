"""Speed: more devices are never slower, nor better than proportional, and a range is in its order."""

import itertools

import pytest

from rcdist.cluster import Workers
from rcdist.config.cli import read_config
from rcdist.estimate.speed import CPU_MFU, GPU_MFU, estimate_speed
from rcdist.model.cost import estimate_flops
from rcdist.tracking.prices import resolve_price
from tests.conftest import ROOT

PRESETS = ROOT / "jobs" / "configs"


@pytest.mark.parametrize("preset", ["370m", "1.3b", "2.7b"])
def test_scaling_is_proportional_at_best(preset: str) -> None:
    config = read_config(["--config", preset, "--cost.node_type=H100"], "test", presets=PRESETS)
    price = resolve_price(config.cost, None)
    speeds = [estimate_speed(config, Workers(2**power, True, 1.0), price) for power in range(11)]
    for few, many in itertools.pairwise(speeds):
        assert few.low < few.high and many.low <= 2 * few.low * 1.001
        assert many.efficiency <= few.efficiency * 1.001
    assert speeds[0].efficiency == 1.0 and 0.9 < speeds[3].efficiency <= 1.0


def test_one_device_computes_at_the_stated_shares_of_its_peak() -> None:
    for name, shares, is_gpu in (("H100", GPU_MFU, True), ("laptop-cpu", CPU_MFU, False)):
        config = read_config([f"--cost.node_type={name}"], "test")
        price = resolve_price(config.cost, None)
        speed = estimate_speed(config, Workers(1, is_gpu, 1.0), price)
        peak = price.peak_flops / estimate_flops(config.architecture).train
        assert (speed.low, speed.high) == pytest.approx((shares[0] * peak, shares[1] * peak))


def test_measured_speeds_lie_in_the_range() -> None:
    # rcdist/benchmark/README.md: jobs on one H100, ZeRO 1, 16 micro-batches a step.
    for preset, measured in (("370m", 206_900), ("1.3b", 71_000)):
        config = read_config(
            ["--config", preset, "--cost.node_type=H100", "--train.activation_checkpointing=false"],
            "test",
            presets=PRESETS,
        )
        speed = estimate_speed(config, Workers(1, True, 1.0), resolve_price(config.cost, None))
        assert speed.low < measured < speed.high
