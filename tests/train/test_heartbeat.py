"""Work that was lost with a worker was paid for: the ledger says so after a restart."""

from pathlib import Path

import pytest

from rcdist.tracking.ledger import Ledger
from rcdist.train.heartbeat import Heartbeat


def spent(device_s: float, useful: float, startup: float = 0.0) -> Ledger:
    return Ledger(device_s=device_s, useful_device_s=useful, startup_device_s=startup, usd=device_s / 10)


def test_lost_steps_are_charged_as_lost(tmp_path: Path) -> None:
    Heartbeat(tmp_path, launch=1.0).beat(spent(100.0, 80.0, startup=15.0))
    restored = spent(60.0, 50.0, startup=10.0)
    held_s = Heartbeat(tmp_path, launch=1.0).recover(restored)
    assert restored.device_s == 100.0
    assert restored.usd == 10.0
    assert restored.useful_device_s == 50.0
    assert restored.lost_device_s == 30.0
    assert restored.startup_device_s == 15.0
    assert 0 <= held_s < 60


def test_a_second_loss_adds_to_the_first(tmp_path: Path) -> None:
    heartbeat = Heartbeat(tmp_path, launch=1.0)
    before = spent(100.0, 60.0)
    before.lost_device_s = 30.0
    heartbeat.beat(before)
    restored = spent(80.0, 50.0)
    Heartbeat(tmp_path, launch=1.0).recover(restored)
    assert restored.lost_device_s == 40.0


def test_time_between_two_jobs_is_not_paid_for(tmp_path: Path) -> None:
    Heartbeat(tmp_path, launch=1.0).beat(spent(10.0, 5.0))
    assert Heartbeat(tmp_path, launch=2.0).recover(spent(10.0, 5.0)) == 0.0


def test_without_a_file_nothing_changes(tmp_path: Path) -> None:
    ledger = spent(10.0, 5.0)
    assert Heartbeat(tmp_path, launch=1.0).recover(ledger) == 0.0
    assert ledger == spent(10.0, 5.0)


def test_a_beat_is_rare_enough_to_cost_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("rcdist.train.heartbeat.time.monotonic", lambda: now[0])
    heartbeat = Heartbeat(tmp_path, launch=1.0)
    heartbeat.beat(spent(1.0, 1.0))
    first = (tmp_path / "ledger.json").read_text()
    heartbeat.beat(spent(2.0, 2.0))
    assert (tmp_path / "ledger.json").read_text() == first
    now[0] += 1
    heartbeat.beat(spent(3.0, 3.0))
    assert (tmp_path / "ledger.json").read_text() != first
