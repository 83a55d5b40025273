"""Run a job as a user does, in a process of its own, or its main in this one."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from rcdist.cli import read_config, run_main
from rcdist.config import JobConfig
from tests.conftest import ROOT, RayHead

SMALL = (
    "--model.num_layers=2 --model.width=64 --model.glu_width=128 --model.vocab_size=512 --data.seq_len=64 "
    "--train.global_batch_tokens=2048 --train.micro_batch_size=8 --train.steps=10 --train.log_every_steps=1 "
    "--checkpoint.every_steps=5 --evaluate.every_steps=5 --evaluate.max_tokens=4096 --tracking.health_every_steps=5"
).split()
"""A model of 150,000 parameters that takes ten steps in a few seconds."""


def small_arguments(storage: Path, *more: str) -> list[str]:
    """Return the command line of a small run."""
    return [*SMALL, f"--storage_path={storage}", *more]


def small_config(storage: Path, *more: str) -> JobConfig:
    """Return the settings of the same run."""
    return read_config(small_arguments(storage, *more), "test")


def start_job(script: str, arguments: list[str], head: RayHead | None = None) -> subprocess.Popen[str]:
    """Start a job script; with `head` it joins the session's cluster."""
    environment = dict(os.environ)
    if head:
        environment["RAY_ADDRESS"] = head.address
    command = [sys.executable, str(ROOT / "jobs" / script), *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run_job_script(script: str, arguments: list[str], head: RayHead | None = None) -> tuple[int, str, str]:
    """Run a job script to its end and return (exit code, stdout, stderr)."""
    process = start_job(script, arguments, head)
    stdout, stderr = process.communicate(timeout=240)
    return process.returncode, stdout, stderr


def run_in_process(script: str, arguments: list[str]) -> int:
    """Run a job's main in this process, with what jobs do about errors, and return the exit code."""
    spec = importlib.util.spec_from_file_location(f"job_{Path(script).stem}", ROOT / "jobs" / script)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return run_main(module.main, arguments)
