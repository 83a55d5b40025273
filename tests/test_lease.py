"""One owner at a time: who is refused, who takes over, and what the one who was taken over from notices."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rcdist import lease as module
from rcdist.errors import ConfigError
from rcdist.lease import Lease
from tests.conftest import ROOT


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BEAT_S", 0.05)
    monkeypatch.setattr(module, "_DEAD_AFTER_S", 0.4)


def test_nothing_is_left_of_a_lease_that_was_let_go(tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "a"
    with Lease(run_dir, "a"):
        (path,) = run_dir.iterdir()
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert not (tmp_path / "runs").exists()
    with Lease(run_dir, "a"):
        (run_dir / "metrics.jsonl").touch()
    assert [path.name for path in run_dir.iterdir()] == ["metrics.jsonl"]


def test_a_second_owner_is_refused_at_once_with_the_facts(tmp_path: Path) -> None:
    with Lease(tmp_path, "mine"):
        began = time.monotonic()
        with pytest.raises(ConfigError) as caught, Lease(tmp_path, "mine"):
            pass
        assert time.monotonic() - began < 1
        assert str(caught.value).startswith(f'name="mine": the run is held by process {os.getpid()} on ')
        assert "started 2" in str(caught.value)


HOLD = """
import sys, time
from pathlib import Path
from rcdist.lease import Lease
with Lease(Path(sys.argv[1]), "mine"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_process_held_is_taken_over_at_once(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT)
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    with pytest.raises(ConfigError, match=f"held by process {holder.pid} "), Lease(tmp_path, "mine"):
        pass
    holder.send_signal(signal.SIGKILL)
    time.sleep(0.2)  # it is a zombie now, which counts as dead
    with Lease(tmp_path, "mine") as lease:
        lease.prove()
        assert [path.name for path in tmp_path.iterdir()] == ["lease-000002.json"]
    holder.communicate()


@pytest.mark.usefixtures("fast")
def test_a_holder_elsewhere_is_known_by_its_heartbeat_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Lease(tmp_path, "mine") as first, monkeypatch.context() as elsewhere:
        elsewhere.setattr(module, "_machine", lambda: "another")
        with pytest.raises(ConfigError, match="the run is held by"), Lease(tmp_path, "mine"):
            pass
        elsewhere.setattr(module.os, "utime", lambda path: None)  # the first one stands still
        with Lease(tmp_path, "mine") as second:
            deadline = time.monotonic() + 5
            while not first.is_lost and time.monotonic() < deadline:
                time.sleep(0.01)
            with pytest.raises(ConfigError, match=r"stood still for .* taken over by process"):
                first.prove()
            assert not second.is_lost
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("content", ["", "{}", '{"pid": 1, "machine": "another", "host": "h"}'])
def test_a_dead_lease_of_elsewhere_or_a_damaged_one_is_taken_over(tmp_path: Path, content: str) -> None:
    (tmp_path / "lease-000007.json").write_text(content)
    os.utime(tmp_path / "lease-000007.json", (2e9, 2e9))  # in the future: no clock is asked
    with Lease(tmp_path, "mine"):
        assert [path.name for path in tmp_path.iterdir()] == ["lease-000008.json"]


@pytest.mark.usefixtures("fast")
def test_of_many_who_take_over_one_does(tmp_path: Path) -> None:
    (tmp_path / "lease-000001.json").write_text("{}")

    def take(_: int) -> bool:
        try:
            with Lease(tmp_path, "mine") as lease:
                time.sleep(1.0)
                return not lease.is_lost
        except ConfigError:
            return False

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(take, range(6))) == 1
