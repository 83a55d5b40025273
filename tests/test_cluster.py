"""Workers and their environment, and the environment of this process, which is given back as it was."""

import os
from pathlib import Path

import pytest

from rcdist.cluster import (
    Workers,
    _give_token,
    planned_workers,
    preserved_environment,
    set_timeouts,
    worker_environment,
)
from rcdist.config import JobConfig


@pytest.mark.parametrize(
    ("cluster", "expected"),
    [
        ({}, Workers(2, False, 1.0)),
        ({"num_workers": 5, "cpus_per_worker": 2}, Workers(5, False, 2.0)),
        ({"use_gpu": True}, Workers(1, True, 1.0)),
        ({"use_gpu": True, "num_workers": [2, 8]}, Workers(8, True, 1.0, 2)),
    ],
)
def test_planned_workers_are_the_most_that_are_asked_for(cluster: dict, expected: Workers) -> None:
    assert planned_workers(JobConfig(cluster=cluster)) == expected


def test_the_environment_is_given_back_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RCDIST_TEST_KEPT", "1")
    monkeypatch.setenv("RCDIST_TEST_REMOVED", "2")
    before = dict(os.environ)
    with pytest.raises(ZeroDivisionError), preserved_environment():
        set_timeouts(JobConfig(), Workers(2, False, 1.0))
        os.environ["RCDIST_TEST_KEPT"] = "3"
        del os.environ["RCDIST_TEST_REMOVED"]
        assert dict(os.environ) != before
        raise ZeroDivisionError
    assert dict(os.environ) == before


def test_a_users_own_timeouts_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "7")
    with preserved_environment():
        set_timeouts(JobConfig(), Workers(2, False, 1.0))
        assert os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] == "7"


def test_ray_has_its_token_where_the_home_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MODE", "TOKEN", "TOKEN_PATH"):
        monkeypatch.delenv(f"RAY_AUTH_{name}", raising=False)
    (tmp_path / "file").write_text("")
    for home, is_given in ((tmp_path, False), (tmp_path / "file", True)):
        monkeypatch.setenv("HOME", str(home))
        with preserved_environment():
            _give_token()
            assert ("RAY_AUTH_TOKEN" in os.environ) == is_given
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # the user's word
    _give_token()
    assert "RAY_AUTH_TOKEN" not in os.environ


def test_workers_get_what_the_driver_has_of_limits_and_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RCDIST_FAULT", raising=False)
    monkeypatch.setenv("RCDIST_MAX_CPU_ISA", "avx2")
    environment = worker_environment(Workers(2, False, 3.0))
    assert environment["OMP_NUM_THREADS"] == "3" and environment["DS_ACCELERATOR"] == "cpu"
    assert environment["RCDIST_MAX_CPU_ISA"] == "avx2" and "RCDIST_FAULT" not in environment
    assert "DS_ACCELERATOR" not in worker_environment(Workers(2, True, 1.0))
