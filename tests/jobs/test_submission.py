"""`ray job submit` to nodes without the code, `ray job stop`, and secrets, which appear nowhere."""

import json
import os
import secrets
import shlex
import shutil
import subprocess
import sysconfig
import time
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow import MlflowClient
from ray.dashboard.modules.job.sdk import JobSubmissionClient

from rcdist.chaos.local_cluster import LocalCluster
from rcdist.checkpoint.find import find_newest_valid
from rcdist.tracking.jsonl import MetricsLog
from tests.conftest import ROOT
from tests.jobs.run import list_workers, small_arguments, small_config
from tests.waiting import wait_for

pytestmark = pytest.mark.slow

SECRETS = ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "HF_TOKEN")
"""Variables of the nodes that hold what nobody may read."""
STOP_WAIT_S = 60


@dataclass(frozen=True)
class Bare:
    """Hold a cluster whose nodes have the packages, but neither the code nor the package that a job asks for."""

    cluster: LocalCluster
    python: Path
    planted: str


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bare]:
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, symlinks=True, with_pip=True)
    python = folder / "bin" / "python"
    (packages,) = folder.glob("lib/python*/site-packages")
    # The packages of this environment; what is installed there as a checkout, as rcdist is, is not taken over.
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    planted = secrets.token_hex(16)
    environment = dict.fromkeys(SECRETS, planted) | {"PYTHONPATH": ""}
    cluster = LocalCluster(2, environment=environment, python=python)
    try:
        yield Bare(cluster, python, planted)
    finally:
        cluster.stop()


@pytest.fixture
def client(bare: Bare, monkeypatch: pytest.MonkeyPatch) -> JobSubmissionClient:
    for name, value in bare.cluster.environment.items():
        if name.startswith("RAY_AUTH"):
            monkeypatch.setenv(name, value)
    deadline = time.monotonic() + 60
    while True:  # the head says that it is up some seconds before its job server is
        try:
            return JobSubmissionClient(bare.cluster.dashboard)
        except (ConnectionError, RuntimeError):
            assert time.monotonic() < deadline
            time.sleep(1)


def test_it_runs_without_a_checkout_stops_with_a_checkpoint_and_tells_no_secret(
    bare: Bare, client: JobSubmissionClient, tmp_path: Path
) -> None:
    cwd, environment = tmp_path, {**os.environ, "PYTHONPATH": ""}
    probe = [str(bare.python), "-c", "import ray, torch, deepspeed, rcdist"]
    missing = subprocess.run(probe, cwd=cwd, env=environment, capture_output=True, text=True)
    assert "No module named 'rcdist'" in missing.stderr
    code = tmp_path / "code"  # what is submitted says so: it is not this checkout that runs
    for name in ("rcdist", "jobs"):
        shutil.copytree(ROOT / name, code / name)
    version = "9.9.9"
    (code / "rcdist" / "__init__.py").write_text(f'"""Another version."""\n\n__version__ = "{version}"\n')
    arguments = small_arguments(tmp_path / "storage", "--train.steps=100000", "--checkpoint.every_steps=1000000")
    job = client.submit_job(
        entrypoint=shlex.join(["python", "jobs/pretrain.py", *arguments]),
        runtime_env={
            "working_dir": str(code),
            "pip": ["rich"],
            "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)},
        },
    )
    config = small_config(tmp_path / "storage")

    def has_records() -> bool:
        assert not client.get_job_status(job).is_terminal(), client.get_job_logs(job)
        return bool(MetricsLog(config.run_dir).read())

    try:
        wait_for(has_records)
        workers = list_workers(bare.cluster)
        assert workers and all(bare.planted in worker.environ().values() for worker in workers)
    finally:
        client.stop_job(job)
    wait_for(lambda: client.get_job_status(job).is_terminal())
    assert client.get_job_status(job) == "STOPPED"
    log = client.get_job_logs(job)
    found = find_newest_valid(config.run_dir)
    assert found is not None and found.manifest.step == MetricsLog(config.run_dir).read()[-1].step, log
    assert found.manifest.versions["rcdist"] == version
    runs = MlflowClient(config.tracking_uri).search_runs(["1"])
    assert [run.info.status for run in runs] == ["KILLED"]
    # Nobody has to look for a secret in any of these.
    details = json.dumps([str(info) for info in client.list_jobs()])
    assert job in details and "RAY_JOB_STOP_WAIT_TIME_S" in details  # what is given as env_vars can be read by all
    places = {"log": log.encode(), "details": details.encode()}
    for folder in (config.storage, bare.cluster.logs):
        places |= {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert len(places) > 20
    assert [place for place, content in places.items() if bare.planted.encode() in content] == []
