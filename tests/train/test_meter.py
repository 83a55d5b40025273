"""A record is the mean of the steps since the last one; all wall time is charged once, lost work too."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from rcdist.config import JobConfig
from rcdist.model.cost import estimate_flops
from rcdist.tracking.ledger import Ledger
from rcdist.tracking.metrics import check_record
from rcdist.tracking.prices import resolve_price
from rcdist.train import meter as module
from rcdist.train.meter import LedgerFile, Meter, read_ledger
from rcdist.train.step_result import StepResult
from rcdist.train.wire import WireBytes, WireMeter

CONFIG = JobConfig()


@dataclass
class Batches:
    """Stand for the loader's two figures."""

    global_tokens: int = 1000
    wait_s: float = 0.01


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Hold the time that the meter reads."""
    now = [100.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    return now


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[WireBytes]:
    waiting: list[WireBytes] = []
    monkeypatch.setattr(WireMeter, "take", lambda self: waiting.pop() if waiting else WireBytes())
    return waiting


def run_step(
    meter: Meter,
    clock: list[float],
    sent: list[WireBytes],
    seconds: float,
    loss: float,
    *,
    applied: bool = True,
    wait_s: float = 0.0,
    looks_inside: bool = False,
) -> None:
    meter.begin_step(looks_inside=looks_inside)
    clock[0] += seconds
    sent.append(WireBytes(trained=50, frozen=2))
    meter.count_step(StepResult(loss, 0.5, applied=applied), Batches(wait_s=wait_s))  # type: ignore[arg-type]


def test_a_record_is_the_mean_of_its_steps(clock: list[float], sent: list[WireBytes]) -> None:
    ledger, price = Ledger(), resolve_price(CONFIG.cost, None, 1.0)
    meter = Meter(CONFIG, price, ledger, WireMeter([]), 2, torch.device("cpu"))
    run_step(meter, clock, sent, 1.0, 4.0, wait_s=0.01, looks_inside=True)
    clock[0] += 7.0  # an evaluation: paid for, but no part of a step
    run_step(meter, clock, sent, 3.0, 2.0, wait_s=0.01)
    record = meter.read(step=2, skipped_steps=1)
    check_record(record)
    assert record["train/loss_nats"] == 2.0 and record["train/loss_mean_nats"] == 3.0
    assert record["perf/step_s"] == 2.0 and record["perf/tokens_per_s"] == 500.0
    assert record["perf/data_wait_s"] == pytest.approx(0.01)
    assert record["wire/bytes_per_step"] == 52.0 and record["wire/frozen_bytes_per_step"] == 2.0
    assert record["train/skipped_steps"] == 1.0 and record["train/tokens"] == 2000.0
    flops = estimate_flops(CONFIG.architecture).train
    assert record["perf/mfu"] == pytest.approx(500 * flops / (2 * price.peak_flops))
    assert record["cost/device_s"] == 2 * 11.0
    assert record["cost/goodput"] == pytest.approx((4 - 0.02) / 11)
    run_step(meter, clock, sent, 1.0, 1.0)
    record = meter.read(step=3, skipped_steps=1)
    assert record["train/loss_mean_nats"] == 1.0
    assert "wire/frozen_bytes_per_step" not in record  # nobody has looked


def test_waiting_is_charged_as_what_it_was(clock: list[float], sent: list[WireBytes]) -> None:
    ledger = Ledger()
    meter = Meter(CONFIG, resolve_price(CONFIG.cost, None, 1.0), ledger, WireMeter([]), 2, torch.device("cpu"))
    clock[0] += 1.0
    meter.charge("startup", extra_s=4.0)
    clock[0] += 2.0
    meter.charge("checkpoint")
    assert (ledger.startup_device_s, ledger.checkpoint_device_s, ledger.device_s) == (10.0, 4.0, 14.0)
    assert ledger.useful_device_s == 0.0


def test_goodput_counts_neither_skipped_steps_nor_waiting_for_data(clock: list[float], sent: list[WireBytes]) -> None:
    ledger = Ledger()
    meter = Meter(CONFIG, resolve_price(CONFIG.cost, None, 1.0), ledger, WireMeter([]), 2, torch.device("cpu"))
    run_step(meter, clock, sent, 4.0, 2.0, applied=False)
    assert (ledger.useful_device_s, ledger.lost_device_s, ledger.idle_device_s) == (0.0, 8.0, 0.0)
    run_step(meter, clock, sent, 4.0, 2.0, wait_s=0.5)
    assert (ledger.useful_device_s, ledger.lost_device_s, ledger.idle_device_s) == (7.0, 8.0, 1.0)
    assert ledger.record()["cost/goodput"] == 7 / 16 and ledger.record()["cost/idle_device_s"] == 1.0


def test_energy_is_measured_or_as_the_price_table_says(clock: list[float], sent: list[WireBytes]) -> None:
    price = resolve_price(CONFIG.cost, None, 1.0)
    for is_there, kwh in ((False, 2 * 10.0 * price.watts / 3.6e6), (True, 7.2 / 3.6e6)):
        counter = SimpleNamespace(is_there=is_there, take=lambda: 3.6)
        ledger = Ledger()
        meter = Meter(CONFIG, price, ledger, WireMeter([]), 2, torch.device("cpu"), energy=counter)  # type: ignore[arg-type]
        clock[0] += 10.0
        meter.charge("other")
        assert meter.take_joules() == (3.6 if is_there else 0.0)
        meter.add_joules(7.2)  # of two workers
        assert ledger.kwh == pytest.approx(kwh)


@pytest.mark.parametrize("text", ["", "{", "null"])
def test_a_damaged_ledger_is_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "ledger.json").write_text(text)
    assert read_ledger(tmp_path) == Ledger()
    assert LedgerFile(tmp_path, launch=1.0).recover(spent(60.0, 50.0)) == 0.0


def spent(device_s: float, useful: float, startup: float = 0.0) -> Ledger:
    return Ledger(device_s=device_s, useful_device_s=useful, startup_device_s=startup, usd=device_s / 10)


def test_lost_steps_are_charged_as_lost(tmp_path: Path) -> None:
    LedgerFile(tmp_path, launch=1.0).write(spent(100.0, 80.0, startup=15.0))
    restored = spent(60.0, 50.0, startup=10.0)
    held_s = LedgerFile(tmp_path, launch=1.0).recover(restored)
    assert restored.device_s == 100.0
    assert restored.usd == 10.0
    assert restored.useful_device_s == 50.0
    assert restored.lost_device_s == 30.0
    assert restored.startup_device_s == 15.0
    assert 0 <= held_s < 60


def test_a_second_loss_adds_to_the_first(tmp_path: Path) -> None:
    file = LedgerFile(tmp_path, launch=1.0)
    before = spent(100.0, 60.0)
    before.lost_device_s = 30.0
    file.write(before)
    restored = spent(80.0, 50.0)
    LedgerFile(tmp_path, launch=1.0).recover(restored)
    assert restored.lost_device_s == 40.0


def test_time_between_two_jobs_is_not_paid_for(tmp_path: Path) -> None:
    LedgerFile(tmp_path, launch=1.0).write(spent(10.0, 5.0))
    assert LedgerFile(tmp_path, launch=2.0).recover(spent(10.0, 5.0)) == 0.0


def test_without_a_file_nothing_changes(tmp_path: Path) -> None:
    ledger = spent(10.0, 5.0)
    assert LedgerFile(tmp_path, launch=1.0).recover(ledger) == 0.0
    assert ledger == spent(10.0, 5.0)


def test_writing_is_rare_enough_to_cost_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("rcdist.train.meter.time.monotonic", lambda: now[0])
    file = LedgerFile(tmp_path, launch=1.0)
    file.write(spent(1.0, 1.0))
    first = (tmp_path / "ledger.json").read_text()
    file.write(spent(2.0, 2.0))
    assert (tmp_path / "ledger.json").read_text() == first
    file.write(spent(2.5, 2.5), now=True)
    assert read_ledger(tmp_path) == spent(2.5, 2.5)
    now[0] += 1
    file.write(spent(3.0, 3.0))
    assert (tmp_path / "ledger.json").read_text() != first
