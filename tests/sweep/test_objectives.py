"""Costs are known without a clock, and objectives that nothing records are refused."""

import pytest

from rcdist.config import JobConfig
from rcdist.errors import ConfigError
from rcdist.model.cost import count_parameters, estimate_flops
from rcdist.sweep.objectives import COSTS, check_cost, check_objectives, measure_plan, to_times, trial_costs
from rcdist.tracking.prices import PriceRow

PRICE = PriceRow("x", "spot", usd_per_device_hour=3600.0, peak_flops=1e9, watts=1.0, source="")
SMALL = JobConfig(
    model={"num_layers": 2, "width": 32, "glu_width": 64, "vocab_size": 300},
    data={"seq_len": 16},
    train={"global_batch_tokens": 64, "steps": 10, "micro_batch_size": 2},
    reservoir={"plan": "cG"},
)


def test_costs_by_flops() -> None:
    costs = trial_costs(SMALL, PRICE)
    flops = estimate_flops(SMALL.architecture)
    assert costs["cost/device_s"] == pytest.approx(flops.train * 640 / 1e9)
    assert costs["cost/usd"] == pytest.approx(costs["cost/device_s"])  # one USD a second
    assert costs["model/stored_parameters"] == count_parameters(SMALL.architecture).stored
    assert (costs["model/train_flops"], costs["model/decode_flops"]) == (flops.train, flops.decode)
    assert set(costs) == {name for name in COSTS if not name.startswith("time/")}


def test_costs_by_benchmark() -> None:
    measured = {kind: {"ratio": 0.5, "T_s": 4.0} for kind in ("train", "prefill", "decode")}
    reference = {kind: {"ratio": 0.9, "T_s": 2.0} for kind in measured}
    times = to_times(measured, reference)
    assert times == {"time/train_s": 1.0, "time/prefill_s": 1.0, "time/decode_s": 1.0}
    costs = trial_costs(SMALL, PRICE, times)
    assert costs["cost/device_s"] == 640.0
    assert set(costs) == set(COSTS)


def test_a_plan_is_measured_against_plan_t() -> None:
    found = measure_plan(SMALL, pairs=1)
    assert set(found) == {"train", "prefill", "decode"}
    assert all(row["ratio"] > 0 and row["T_s"] > 0 for row in found.values())


@pytest.mark.parametrize(
    ("names", "rule"),
    [
        (["eval/bits_per_bite"], "no trial records it"),
        (["train/loss_nats"], "no trial records it"),
        (["cost/usd"], "is not a quality"),
        (["eval/bits_per_byte", "eval/loss_nats"], "is not a quality, alone or followed by one cost"),
        (["eval/bits_per_byte", "cost/usd", "cost/device_s"], "is not a quality, alone or followed by one cost"),
        ([], "is not a quality"),
    ],
)
def test_bad_objectives(names: list[str], rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        check_objectives(names)


@pytest.mark.parametrize("name", [name for name in COSTS if name.startswith("time/")])
def test_measured_time_needs_a_benchmark(name: str) -> None:
    check_cost(name, "benchmark")
    with pytest.raises(ConfigError, match=r"Set sweep.cost_from=benchmark"):
        check_cost(name, "flops")


def test_every_cost_can_be_an_objective() -> None:
    for name in COSTS:
        check_objectives(["eval/bits_per_byte", name])
