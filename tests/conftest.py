"""What every test shares: fixed seeds, one small Ray cluster per session, nothing written outside temporary folders."""

import os
import secrets
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest

# Before torch, ray or deepspeed are imported, here and in the processes that tests start.
os.environ["DS_ACCELERATOR"] = "cpu"
os.environ["OMP_NUM_THREADS"] = "1"  # of each of the processes that share the cores; tests of threads set their own
os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.3"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["PYTHONWARNINGS"] = "ignore::FutureWarning:torch.distributed.c10d_logger"
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
os.environ.setdefault("TRITON_INTERPRET", "0" if Path("/dev/nvidia0").exists() else "1")
os.environ.pop("RAY_ADDRESS", None)
# Ray reads its token once per process, at the first use of anything: it must be there before.
_SECRETS = tempfile.TemporaryDirectory(prefix="rcdist-test-")
_TOKEN = Path(_SECRETS.name) / "token"
_TOKEN.write_text(secrets.token_hex(32))
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN_PATH"] = str(_TOKEN)

# No test asserts a time: an example that is slow on a busy machine is no failure.
hypothesis.settings.register_profile("rcdist", deadline=None)
hypothesis.settings.load_profile("rcdist")

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


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Seed torch with 42 before each test; denormal numbers count, whatever a test before has set."""
    import torch

    torch.manual_seed(42)
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def mlflow_db(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an empty SQLite tracking store, to be copied: MLflow takes longer for its schema than for many runs."""
    from rcdist.tracking.mlflow import check_server

    path = tmp_path_factory.mktemp("schema") / "mlflow.db"
    check_server(f"sqlite:///{path}", "other", 10.0)
    return path


@pytest.fixture(scope="session")
def ray_head() -> Iterator[RayHead]:
    """Start a Ray head with four CPU slots, its dashboard and its job server."""
    from rcdist.chaos.local_cluster import LocalCluster

    cluster = LocalCluster(4, object_store_bytes=500_000_000)
    try:
        yield RayHead(cluster.address, cluster.dashboard)
    finally:
        cluster.stop()


@pytest.fixture(scope="session")
def ray_cpu(ray_head: RayHead) -> Iterator[None]:
    """Connect this process to the session's cluster."""
    import ray

    ray.init(address=ray_head.address, logging_level="ERROR", runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}})
    yield
    ray.shutdown()
