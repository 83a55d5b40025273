"""What every test shares: fixed seeds, one small Ray cluster per session, nothing written outside temporary folders."""

import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

# Before torch, ray or deepspeed are imported, here and in the processes that tests start.
os.environ["DS_ACCELERATOR"] = "cpu"
os.environ["OMP_NUM_THREADS"] = "1"  # of each of the processes that share the cores; tests of threads set their own
os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.3"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["PYTHONWARNINGS"] = "ignore::FutureWarning:torch.distributed.c10d_logger"
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.pop("RAY_ADDRESS", None)
# Ray reads its token once per process, at the first use of anything: it must be there before.
_SECRETS = tempfile.TemporaryDirectory(prefix="rcdist-test-")
_TOKEN = Path(_SECRETS.name) / "token"
_TOKEN.write_text(secrets.token_hex(32))
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN_PATH"] = str(_TOKEN)

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class RayHead:
    """Hold the addresses of the session's cluster."""

    address: str
    dashboard: str


def pytest_itemcollected(item: pytest.Item) -> None:
    """Let -m "not slow" leave out what is for the exhaustive suite too."""
    if item.get_closest_marker("exhaustive"):
        item.add_marker(pytest.mark.slow)


def free_ports(count: int) -> list[int]:
    """Return ports that nothing listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [int(sock.getsockname()[1]) for sock in sockets]
    finally:
        for sock in sockets:
            sock.close()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Seed torch with 42 before each test; denormal numbers count, whatever a test before has set."""
    import torch

    torch.manual_seed(42)
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def ray_head() -> Iterator[RayHead]:
    """Start a cluster of one node with 4 CPU slots, dashboard and token authentication, on ports of its own."""
    with tempfile.TemporaryDirectory(prefix="rt") as folder:
        port, dashboard, metrics, agent = free_ports(4)
        command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--num-cpus=4"]
        command += [f"--port={port}", f"--dashboard-port={dashboard}", f"--metrics-export-port={metrics}"]
        # The agent that jobs are submitted to has a fixed port by default, taken if another Ray runs on this machine.
        command += [f"--dashboard-agent-listen-port={agent}"]
        command += ["--node-ip-address=127.0.0.1", f"--temp-dir={folder}/r", "--disable-usage-stats"]
        command += ["--object-store-memory=500000000"]
        log = Path(folder) / "head.log"
        with log.open("w") as output:
            head = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + 120
            while "Ray runtime started" not in log.read_text():
                assert head.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            yield RayHead(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}")
        finally:
            # Killed by pid, children first listed: a polite end takes 30 s.
            for process in [*psutil.Process(head.pid).children(recursive=True), head]:
                process.kill()
            head.wait(timeout=60)


@pytest.fixture(scope="session")
def ray_cpu(ray_head: RayHead) -> Iterator[None]:
    """Connect this process to the session's cluster."""
    import ray

    ray.init(address=ray_head.address, logging_level="ERROR", runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}})
    yield
    ray.shutdown()
