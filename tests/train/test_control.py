"""Why a run ends or saves early: what rank 0 polls and all agree on, and what driver and workers tell each other."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import ray.train

from rcdist.config import JobConfig
from rcdist.errors import BudgetError, DivergedError, RcdistError, RetriesError
from rcdist.tracking.ledger import Ledger
from rcdist.train import control as module
from rcdist.train.control import (
    BUDGETS,
    Interruption,
    Interrupts,
    budget_error,
    clear_stop,
    find_used_up,
    is_stop_requested,
    read_stop,
    request_stop,
    stop_if_repeated,
    write_stop,
)
from tests.checkpoint.test_manifest import make_checkpoint


def make(tmp_path: Path, rank: int = 0, **cost: float) -> Interrupts:
    config = JobConfig(storage_path=str(tmp_path), cost=cost)
    config.run_dir.mkdir(parents=True)
    return Interrupts(config, Ledger(usd=1.0), time.time() + 100, rank)


def test_a_used_up_budget_is_heard_by_its_name(tmp_path: Path) -> None:
    interrupts = make(tmp_path, budget_usd=0.5)
    assert interrupts.agree(interrupts.poll()) == Interruption("cost.budget_usd", is_preempted=False, is_stopped=False)


def test_other_ranks_look_for_nothing(tmp_path: Path) -> None:
    assert make(tmp_path, rank=1, budget_usd=0.5).poll() == (0.0, 0.0, 0.0)


def test_the_end_that_the_driver_asks_for_is_seen_at_the_next_look_that_is_due(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupts = make(tmp_path)
    request_stop(JobConfig(storage_path=str(tmp_path)).run_dir)
    assert not interrupts.agree(interrupts.poll()).is_stopped
    monkeypatch.setattr(module, "_STOP_EVERY_S", -1.0)
    assert interrupts.agree(interrupts.poll()) == Interruption(None, is_preempted=False, is_stopped=True)


def test_a_notice_is_asked_for_when_it_is_due_and_heard_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[object] = [None, "soon", "soon", None, "again"]
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: answers.pop(0))
    interrupts = make(tmp_path)
    assert not interrupts.agree(interrupts.poll()).is_preempted and len(answers) == 5
    monkeypatch.setattr(module, "_NOTICE_EVERY_S", -1.0)
    assert [interrupts.agree(interrupts.poll()).is_preempted for _ in range(5)] == [False, True, False, False, True]


@pytest.mark.parametrize(
    ("settings", "deadline", "expected"),
    [
        ({}, float("inf"), None),
        ({"cost": {"budget_usd": 2.0}}, float("inf"), None),
        ({"cost": {"budget_usd": 1.0}}, float("inf"), "cost.budget_usd"),
        ({"cost": {"budget_device_s": 50.0}}, float("inf"), "cost.budget_device_s"),
        ({"cost": {"budget_device_s": 50.1}}, float("inf"), None),
        ({"train": {"max_wall_s": 9.0}}, 0.0, "train.max_wall_s"),
    ],
)
def test_names_what_is_used_up(settings: dict, deadline: float, expected: str | None) -> None:
    ledger = Ledger(device_s=50.0, usd=1.0)
    assert BUDGETS[int(find_used_up(JobConfig(**settings), ledger, deadline))] == expected


def test_the_error_says_what_was_used_and_how_to_go_on() -> None:
    config = JobConfig(cost={"budget_usd": 1.0})
    error = budget_error(config, "cost.budget_usd", 7, Ledger(device_s=50.0, usd=1.25))
    assert error.exit_code == 4
    assert str(error).startswith("cost.budget_usd=1.0: used up at step 7 of ")
    assert "1.25 USD and 50 device seconds" in str(error)


@pytest.mark.parametrize(
    "error",
    [
        BudgetError("cost.budget_usd", 1.5, "used up", "Raise it"),
        DivergedError("divergence.max_rollbacks", 2, "no better", "Lower it"),
    ],
)
def test_an_error_comes_back_as_it_was(tmp_path: Path, error: RcdistError) -> None:
    assert read_stop(tmp_path) is None
    write_stop(tmp_path, error)
    found = read_stop(tmp_path)
    assert type(found) is type(error)
    assert str(found) == str(error)
    clear_stop(tmp_path)
    assert read_stop(tmp_path) is None


def test_a_request_is_seen_until_it_is_cleared(tmp_path: Path) -> None:
    assert not is_stop_requested(tmp_path)
    request_stop(tmp_path)
    assert is_stop_requested(tmp_path)
    clear_stop(tmp_path)
    assert not is_stop_requested(tmp_path)


def test_ranks_that_fail_together_do_not_take_each_others_file_away(tmp_path: Path) -> None:
    errors = [DivergedError("divergence.max_rollbacks", rank, "no better", "Lower it") for rank in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(50):
            list(pool.map(lambda rank: write_stop(tmp_path, errors[rank]), range(8)))
            found = read_stop(tmp_path)
            assert found is not None and str(found) in map(str, errors)
    assert [path.name for path in tmp_path.iterdir()] == ["stop.json"]


def test_an_error_that_a_retry_repeats_stops_the_run(tmp_path: Path) -> None:
    stop_if_repeated(tmp_path, 0, TypeError("bad"))
    stop_if_repeated(tmp_path, 1, TypeError("bad"))
    stop_if_repeated(tmp_path, 0, TypeError("worse"))
    assert read_stop(tmp_path) is None
    make_checkpoint(tmp_path, 4)
    stop_if_repeated(tmp_path, 0, TypeError("worse"))  # but with a checkpoint in between
    assert read_stop(tmp_path) is None
    stop_if_repeated(tmp_path, 0, TypeError("worse"))
    stop = read_stop(tmp_path)
    assert isinstance(stop, RetriesError) and "from step-00000004: TypeError: worse" in str(stop)
    assert "worse" in (tmp_path / "failure.txt").read_text()
    clear_stop(tmp_path)
    stop_if_repeated(tmp_path, 0, TypeError("worse"))
    assert read_stop(tmp_path) is None


@pytest.mark.parametrize("error", [ConnectionResetError("peer"), RuntimeError("[gloo/pair.cc] Connection closed")])
def test_the_loss_of_another_worker_is_no_error_of_its_own(tmp_path: Path, error: Exception) -> None:
    for _ in range(3):
        stop_if_repeated(tmp_path, 0, error)
    assert read_stop(tmp_path) is None
