"""The driver's wait for a run: what it raises, how it polls, and how a signal becomes a polite stop."""

import threading

import pytest

from rcdist.trainer import follow


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
