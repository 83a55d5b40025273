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


@pytest.mark.parametrize(
    ("card", "preset", "measured"),
    [("H100", "370m", 206_900), ("H100", "1.3b", 71_000), ("H200", "370m", 232_800), ("H200", "1.3b", 77_200)],
)
def test_measured_speeds_lie_in_the_range(card: str, preset: str, measured: float) -> None:
    # rcdist/benchmark/README.md: jobs on one card, ZeRO 1, many micro-batches a step.
    config = read_config(
        ["--config", preset, f"--cost.node_type={card}", "--train.activation_checkpointing=false"],
        "test",
        presets=PRESETS,
    )
    speed = estimate_speed(config, Workers(1, True, 1.0), resolve_price(config.cost, None))
    assert speed.low < measured < speed.high


def test_two_cards_scale_as_measured() -> None:
    # rcdist/benchmark/README.md, Scaling: one micro-batch a step, where the exchange weighs most.
    config = read_config(
        [
            "--config=1.3b",
            "--cost.node_type=H200",
            "--train.zero_stage=1",
            "--train.micro_batch_size=8",
            f"--train.global_batch_tokens={16 * 2048}",
        ],
        "test",
        presets=PRESETS,
    )
    one = config.model_copy(update={"train": config.train.model_copy(update={"global_batch_tokens": 8 * 2048})})
    price = resolve_price(config.cost, None)
    alone = estimate_speed(one, Workers(1, True, 1.0), price)
    together = estimate_speed(config, Workers(2, True, 1.0), price)
    assert (together.low + together.high) / 2 / (alone.low + alone.high) == pytest.approx(0.965, abs=0.01)
