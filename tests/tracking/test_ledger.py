"""The ledger by hand-worked numbers, over a resume, and with time that brings no tokens."""

import json
from dataclasses import asdict

import pytest

from rcdist.config import JobConfig
from rcdist.model.cost import estimate_flops
from rcdist.tracking.ledger import Ledger
from rcdist.tracking.metrics import check_record
from rcdist.tracking.prices import PriceRow

PRICE = PriceRow("row", "on_demand", usd_per_device_hour=3.6, peak_flops=1e12, watts=500, source="test")
CONFIG = JobConfig(name="x")
FLOPS = estimate_flops(CONFIG.architecture, activation_checkpointing=True)


def charge(ledger: Ledger, seconds: float, tokens: int, **more: float) -> None:
    ledger.charge(seconds=seconds, num_devices=4, tokens=tokens, flops_per_token=FLOPS, price=PRICE, **more)


def test_hand_worked_charge() -> None:
    ledger = Ledger()
    charge(ledger, 10.0, 1000)
    assert ledger.device_s == 40.0
    assert ledger.usd == pytest.approx(40 * 0.001)
    assert ledger.kwh == pytest.approx(40 * 500 / 3.6e6)
    assert ledger.trained_flops == 1000 * FLOPS.train
    assert ledger.hardware_flops == 1000 * FLOPS.hardware > ledger.trained_flops


def test_goodput_counts_seconds_that_brought_tokens_unless_told() -> None:
    ledger = Ledger()
    assert ledger.record()["cost/goodput"] == 0.0
    charge(ledger, 3.0, 10)
    charge(ledger, 1.0, 0)
    assert ledger.record()["cost/goodput"] == pytest.approx(0.75)
    charge(ledger, 4.0, 10, useful_s=1.0)
    assert ledger.record()["cost/goodput"] == pytest.approx(0.5)


def test_a_resumed_ledger_equals_one_that_was_never_stopped() -> None:
    whole, first = Ledger(), Ledger()
    for ledger in (whole, first):
        charge(ledger, 0.1, 10**12)
    second = Ledger(**json.loads(json.dumps(asdict(first))))
    third = Ledger(tokens=5)
    third.load(first)
    for ledger in (whole, second, third):
        charge(ledger, 0.2, 7)
    assert whole == second == third
    assert isinstance(second.trained_flops, int)


def test_record_names_are_metrics() -> None:
    check_record(Ledger().record())
