"""One short run that several tests of jobs look at."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rcdist.config import JobConfig
from tests.conftest import ROOT, RayHead
from tests.jobs.run import small_arguments, small_config


@pytest.fixture(scope="session")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("storage")


@pytest.fixture(scope="session")
def submitted(storage: Path, ray_head: RayHead) -> tuple[JobConfig, str]:
    """Submit ten steps with `ray job submit --working-dir .` and return the settings and the streamed log."""
    command = [str(Path(sys.executable).parent / "ray"), "job", "submit", "--address", ray_head.dashboard]
    command += ["--working-dir", str(ROOT), "--runtime-env-json", json.dumps({"excludes": [".git", "*.txt~"]})]
    command += ["--", sys.executable, "jobs/pretrain.py", *small_arguments(storage, "--name=unbroken")]
    for _ in range(30):
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=ROOT)
        # The head says that it is up some seconds before its job agent is.
        if "No available agent" not in done.stderr:
            break
        time.sleep(1)
    assert done.returncode == 0, done.stdout + done.stderr
    return small_config(storage, "--name=unbroken"), done.stdout
