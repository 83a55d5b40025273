"""What rank 0 looks for, how seldom, and what every rank hears."""

import time
from pathlib import Path

import pytest
import ray.train

from rcdist.config import JobConfig
from rcdist.tracking.ledger import Ledger
from rcdist.train import wishes as module
from rcdist.train.stop import request_stop
from rcdist.train.wishes import Heard, Wishes


def make(tmp_path: Path, rank: int = 0, **cost: float) -> Wishes:
    config = JobConfig(storage_path=str(tmp_path), cost=cost)
    config.run_dir.mkdir(parents=True)
    return Wishes(config, Ledger(usd=1.0), time.time() + 100, rank)


def test_a_used_up_budget_is_heard_by_its_name(tmp_path: Path) -> None:
    wishes = make(tmp_path, budget_usd=0.5)
    assert wishes.hear(wishes.look()) == Heard("cost.budget_usd", is_noticed=False, is_stopped=False)


def test_other_ranks_look_for_nothing(tmp_path: Path) -> None:
    assert make(tmp_path, rank=1, budget_usd=0.5).look() == (0.0, 0.0, 0.0)


def test_the_end_that_the_driver_asks_for_is_seen_at_the_next_look_that_is_due(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wishes = make(tmp_path)
    request_stop(JobConfig(storage_path=str(tmp_path)).run_dir)
    assert not wishes.hear(wishes.look()).is_stopped
    monkeypatch.setattr(module, "_STOP_EVERY_S", -1.0)
    assert wishes.hear(wishes.look()) == Heard(None, is_noticed=False, is_stopped=True)


def test_a_notice_is_asked_for_when_it_is_due_and_heard_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[object] = [None, "soon", "soon", None, "again"]
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: answers.pop(0))
    wishes = make(tmp_path)
    assert not wishes.hear(wishes.look()).is_noticed and len(answers) == 5
    monkeypatch.setattr(module, "_NOTICE_EVERY_S", -1.0)
    assert [wishes.hear(wishes.look()).is_noticed for _ in range(5)] == [False, True, False, False, True]
