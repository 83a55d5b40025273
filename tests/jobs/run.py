"""Run a job as a user does, in a process of its own, or its main in this one."""

import contextlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import psutil

from rcdist.chaos.job import SMALL
from rcdist.chaos.local_cluster import LocalCluster
from rcdist.config import JobConfig
from rcdist.config.cli import read_config
from rcdist.exits import run_main
from tests.conftest import ROOT, RayHead

TEN_STEPS = [
    *SMALL,
    *"--train.steps=10 --checkpoint.every_steps=5 --evaluate.every_steps=5 --tracking.health_every_steps=5".split(),
]
"""A run of a few seconds."""


def small_arguments(storage: Path, *more: str) -> list[str]:
    """Return the command line of a small run."""
    return [*TEN_STEPS, f"--storage_path={storage}", *more]


def small_config(storage: Path, *more: str) -> JobConfig:
    """Return the settings of the same run."""
    return read_config(small_arguments(storage, *more), "test")


def list_workers(cluster: LocalCluster) -> list[psutil.Process]:
    """List the processes that train on a cluster's first node; others of it come and go meanwhile."""
    found = []
    for process in cluster.processes("raylet/raylet")[0].children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "RayTrainWorker" in "".join(process.cmdline()):
                found.append(process)
    return found


def run_job_script(script: str, arguments: list[str], head: RayHead | None = None) -> tuple[int, str, str]:
    """Run a job script to its end; return (exit code, stdout, stderr). With `head` it joins the session's cluster."""
    environment = os.environ | ({"RAY_ADDRESS": head.address} if head else {})
    command = [sys.executable, str(ROOT / "jobs" / script), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    return done.returncode, done.stdout, done.stderr


def run_in_process(script: str, arguments: list[str]) -> int:
    """Run a job's main in this process, with what jobs do about errors, and return the exit code."""
    spec = importlib.util.spec_from_file_location(f"job_{Path(script).stem}", ROOT / "jobs" / script)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return run_main(module.main, arguments)
