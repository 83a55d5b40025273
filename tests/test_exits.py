"""What happened in a job decides its exit code, and the cause is found wherever Ray has put it."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rcdist.errors import ClusterError, ConfigError
from rcdist.exits import find_cause, run_main
from rcdist.printing import printed_log
from tests.conftest import ROOT, RayHead
from tests.waiting import wait_for


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (None, 0, ""),
        (ClusterError("a", 1, "too small", "Grow"), 3, "a=1: too small. Grow.\n"),
        (KeyboardInterrupt(), 143, "stopped\n"),
        (SystemExit(15), 143, "stopped\n"),
        (RuntimeError("bug"), 1, "RuntimeError: bug"),
    ],
)
def test_what_happened_decides_the_exit_code(
    capsys: pytest.CaptureFixture[str], error: BaseException | None, code: int, text: str
) -> None:
    def main(argv: list[str]) -> int:
        if error:
            raise error
        return 0

    assert run_main(main, []) == code
    assert text in capsys.readouterr().err


def test_the_cause_is_found_inside_what_ray_train_raises() -> None:
    from ray.train import WorkerGroupError

    inner = ConfigError("a", 1, "wrong", "Mend it")
    assert find_cause(WorkerGroupError("worker failed", {1: inner})) is inner
    assert find_cause(ValueError("other")) is None


def test_a_full_disk_behind_the_output_hides_neither_error_nor_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def main(_: list[str]) -> None:
        with printed_log():
            logging.getLogger("rcdist").warning("nobody can read this")
        raise ConfigError("a", 1, "wrong", "Right it")

    with contextlib.suppress(OSError), open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        monkeypatch.setattr(sys, "stdout", full)
        code = run_main(main, [])
    assert code == 2


def test_arguments_that_are_not_utf_8_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[list[str]] = []
    assert run_main(calls.append, ["--name=ä", os.fsdecode(b"--name=a\xff")]) == 2
    assert (
        capsys.readouterr().err == 'argument 2="--name=a\\xff": has bytes that are not UTF-8. Rename what it names.\n'
    )
    assert not calls
    assert run_main(calls.append, ["--name=ä"]) == 0 and calls == [["--name=ä"]]


WAITING = """
import sys, time
from pathlib import Path
import ray
from rcdist.cluster import ray_session
from rcdist.config import JobConfig
from rcdist.exits import run_job

def wait():
    time.sleep(100)

def main(argv):
    with ray_session(JobConfig(cluster={"address": argv[0]})):
        waiting = ray.remote(num_cpus=0)(wait).remote()
        Path(argv[1]).touch()
        ray.get(waiting)

run_job(main)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_ray_is_waited_for_is_a_stop(ray_head: RayHead, tmp_path: Path, number: int) -> None:
    waits = tmp_path / "waits"
    command = [sys.executable, "-c", WAITING, ray_head.address, str(waits)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    # What a script starts in the background ignores Ctrl-C, this suite for one, and all it starts does too.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    try:
        wait_for(waits.exists, process)
        time.sleep(0.5)
        process.send_signal(number)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 143 and error.endswith("stopped\n"), error
