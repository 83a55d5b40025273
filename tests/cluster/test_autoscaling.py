"""Nodes come when a run asks for them, go when they are idle, and a run outlives one that is taken away."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rcdist.chaos.local_cluster import LocalCluster
from rcdist.checkpoint.find import find_checkpoints
from rcdist.tracking.jsonl import MetricsLog
from tests.conftest import ROOT
from tests.jobs.run import small_arguments
from tests.waiting import wait_for

pytestmark = pytest.mark.slow

_RAYLET = "raylet/raylet"
_WAIT_S = 150.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """Start a head without a CPU, of the file that users start theirs with."""
    cluster = LocalCluster(0, autoscaling=ROOT / "cluster" / "local.yaml")
    try:
        yield cluster
    finally:
        cluster.stop()
    assert not cluster.processes()


def start(cluster: LocalCluster, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "jobs" / "pretrain.py"), *arguments]
    environment = {**os.environ, **cluster.environment}
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def num_nodes(cluster: LocalCluster) -> int:
    """Count the nodes besides the head."""
    return len(cluster.processes(_RAYLET)) - 1


def test_nodes_come_for_a_run_and_go_after_it(cluster: LocalCluster, tmp_path: Path) -> None:
    assert num_nodes(cluster) == 0
    job = start(cluster, *small_arguments(tmp_path, "--cluster.num_workers=2"))
    wait_for(lambda: num_nodes(cluster) == 2, job)
    output, _ = job.communicate(timeout=_WAIT_S)
    assert job.returncode == 0, output
    assert MetricsLog(tmp_path / "runs" / "tiny").read()[-1].step == 10
    wait_for(lambda: num_nodes(cluster) == 0)


@pytest.mark.exhaustive
def test_a_run_outlives_its_node_and_grows_with_the_next_one(cluster: LocalCluster, tmp_path: Path) -> None:
    many = ["--train.steps=100000", "--checkpoint.every_steps=20", "--tracking.log_samples=true"]
    elastic = ["--cluster.num_workers=[1,2]", "--cluster.resize_interval_s=1", "--cluster.start_timeout_s=10"]
    job = start(cluster, *small_arguments(tmp_path, *many, *elastic))
    run_dir = tmp_path / "runs" / "tiny"

    def attempts_of_both() -> set[str]:
        """Return the attempts in which both workers have read text."""
        return {file.name.split("-")[0] for file in run_dir.glob("samples/*-1.jsonl") if file.stat().st_size}

    try:
        wait_for(lambda: num_nodes(cluster) == 2, job)
        wait_for(lambda: bool(find_checkpoints(run_dir)) and bool(attempts_of_both()), job)
        raylets = cluster.processes(_RAYLET)
        victim = max(raylets, key=lambda process: process.create_time())
        before = attempts_of_both()
        victim.kill()
        wait_for(lambda: not victim.is_running() and num_nodes(cluster) == 2, job)  # another one has come
        wait_for(lambda: bool(attempts_of_both() - before), job)
    finally:
        job.send_signal(signal.SIGTERM)
    output, _ = job.communicate(timeout=60)
    assert job.returncode == 143, output
    assert "resumed from step-" in output
    assert MetricsLog(run_dir).read()[-1].metrics["run/worker_starts"] >= 2
