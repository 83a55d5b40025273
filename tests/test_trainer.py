"""The driver's wait for a run: what it raises, how it polls, how a signal becomes a stop; training right here."""

import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist

from rcdist.cluster import Workers
from rcdist.config import JobConfig
from rcdist.errors import DivergedError, RetriesError
from rcdist.train import loop
from rcdist.trainer import fit_here, follow


def test_polls_until_the_end_and_once_more() -> None:
    ended, polls = threading.Event(), []

    def poll() -> None:
        polls.append(ended.is_set())
        if len(polls) == 2:
            ended.set()

    follow(lambda: ended.wait(10) or None, poll)
    assert polls[:2] == [False, False] and polls[-1] is True


def test_raises_what_the_work_raised_after_a_last_poll() -> None:
    polls: list[int] = []

    def work() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        follow(work, lambda: polls.append(1))
    assert polls


@pytest.mark.parametrize("grace_s", [10.0, 0.0])
def test_a_signal_asks_for_the_end_and_waits_for_it_within_the_grace(grace_s: float) -> None:
    asked, went = threading.Event(), threading.Event()
    polls: list[int] = []

    def work() -> None:
        if asked.wait(30):
            went.set()

    def poll() -> None:
        polls.append(1)
        if len(polls) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        follow(work, poll, request_stop=asked.set, grace_s=grace_s)
    assert asked.is_set() == went.is_set() == (grace_s > 0)
    asked.set()


def test_a_work_that_does_not_end_is_left_when_the_grace_is_over() -> None:
    release, polls = threading.Event(), []

    def poll() -> None:
        polls.append(1)
        if len(polls) == 1:
            raise SystemExit(143)

    with pytest.raises(SystemExit):
        follow(lambda: release.wait(30) or None, poll, grace_s=0.3)
    assert len(polls) >= 3  # the run's last records are still taken
    release.set()


@pytest.mark.parametrize(
    ("failures", "raised", "tries"),
    [
        ([], None, 1),
        ([OSError("gone"), OSError("gone")], None, 3),
        ([OSError("gone")] * 3, RetriesError, 3),
        ([DivergedError("a", 1, "b", "c")], DivergedError, 1),
    ],
    ids=["done", "tried again", "too often", "of ours"],
)
def test_a_run_in_this_process_is_tried_again_as_workers_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: list[Exception], raised: Any, tries: int
) -> None:
    left, calls = list(failures), []
    monkeypatch.setattr(os, "environ", dict(os.environ))

    def train(arguments: dict[str, Any]) -> None:
        calls.append(arguments["payload"])
        if left:
            raise left.pop(0)

    monkeypatch.setattr(loop, "train_loop_per_worker", train)
    config = JobConfig(storage_path=str(tmp_path), cluster={"max_failures": 2})
    config.run_dir.mkdir(parents=True)
    payload: Any = SimpleNamespace(config=config)
    if raised is None:
        fit_here(payload, Workers(1, False, 1.0))
    else:
        with pytest.raises(raised):
            fit_here(payload, Workers(1, False, 1.0))
    assert calls == [payload] * tries
    dist.destroy_process_group()
