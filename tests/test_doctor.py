"""doctor says that all is well where it is, and finds each of several problems planted on purpose, with its fix."""

import json
import os
import sys
import time
from pathlib import Path

import pytest

from rcdist.config import JobConfig
from rcdist.doctor.examine import guarded
from rcdist.doctor.finding import Finding
from rcdist.doctor.machine import find_compiler, find_versions
from rcdist.doctor.nodes import judge_node, look_from_node
from rcdist.doctor.stores import find_mlflow, find_storage
from rcdist.errors import EXIT_BAD_CONFIG, EXIT_DONE
from rcdist.ops import native
from rcdist.ports import free_port
from tests.conftest import RayHead
from tests.jobs.run import run_in_process, run_job_script
from tests.s3_server import BUCKET, s3_server


def problems(findings: list[Finding]) -> list[str]:
    return [str(finding) for finding in findings if finding.remedy is not None]


@pytest.mark.slow
def test_a_healthy_cluster_has_no_problem(
    ray_head: RayHead, ray_cpu: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_in_process("doctor.py", [f"--storage_path={tmp_path}"]) == EXIT_DONE
    output = capsys.readouterr().out
    for what in (
        "python",
        "versions",
        "processor",
        "compiler",
        "devices",
        "step",
        "settings",
        "storage",
        "mlflow",
        "ray",
        "collectives",
    ):
        assert f"ok       {what}: " in output, output
    assert "writes the storage, has the time" in output
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".doctor")] == []


@pytest.mark.slow
def test_an_address_that_nobody_answers_at_and_settings_that_deepspeed_refuses(tmp_path: Path) -> None:
    port = free_port()
    arguments = [f"--storage_path={tmp_path}", f"--cluster.address=127.0.0.1:{port}", "--json"]
    arguments += ["--deepspeed={zero_optimization: 3}"]
    code, output, error = run_job_script("doctor.py", arguments)
    assert code == EXIT_BAD_CONFIG, error
    found = json.loads(output)
    settings, ray = [finding for finding in found["findings"] if finding["remedy"] is not None]
    assert found["problems"] == 2 and ray["what"] == "ray" and f"127.0.0.1:{port}" in ray["found"]
    assert settings["what"] == "settings" and settings["found"].startswith("deepspeed.zero_optimization=3: ")


def test_a_package_of_the_wrong_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = tmp_path / "optuna-99.0.dist-info"
    planted.mkdir()
    (planted / "METADATA").write_text("Metadata-Version: 2.1\nName: optuna\nVersion: 99.0\n")
    assert problems(list(find_versions())) == []
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (found,) = problems(list(find_versions()))
    assert "optuna 99.0 is not" in found and "pip install" in found


def test_a_machine_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native._library.cache_clear()
    try:
        assert "Install g++" in str(find_compiler())
    finally:
        native._library.cache_clear()
        native._function.cache_clear()


def test_storage_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = find_storage(JobConfig(storage_path=str(tmp_path / "file" / "storage")))
    assert "cannot be written" in found.found and "--storage_path" in str(found.remedy)
    assert find_storage(JobConfig(storage_path=str(tmp_path / "new"))).remedy is None


def test_a_bucket_that_cannot_be_written_and_one_that_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RCDIST_WORK_DIR", str(tmp_path))
    with s3_server():
        assert problems([find_storage(JobConfig(storage_path=f"s3://{BUCKET}/x"))]) == []
        (found,) = problems([find_storage(JobConfig(storage_path="s3://not-there-at-all/x"))])
        assert "NO_SUCH_BUCKET" in found and "credentials" in found
        seen = look_from_node("s3://not-there-at-all/x", "probe")
    now = time.time()
    (found,) = problems([judge_node("node 1", seen, now, now, "s3://not-there-at-all/x")])
    assert "before `ray start`" in found


def test_a_tracking_server_that_is_not_there() -> None:
    port = free_port()
    config = JobConfig(tracking={"uri": f"http://127.0.0.1:{port}", "timeout_s": 2})
    (found,) = problems(list(guarded("mlflow", lambda: find_mlflow(config))))
    assert f"127.0.0.1:{port}" in found and found.startswith("PROBLEM  mlflow")


def test_what_is_wrong_with_a_node(tmp_path: Path) -> None:
    seen = look_from_node(str(tmp_path), "name")
    now = time.time()
    assert judge_node("node", seen, now - 1, now, str(tmp_path)).remedy is None
    assert "its clock is 9" in judge_node("node", seen | {"time": now + 9.5}, now - 1, now, str(tmp_path)).found
    other = seen | {"versions": {"torch": "1.0"}}
    assert "torch 1.0, here" in judge_node("node", other, now - 1, now, str(tmp_path)).found
    os.rmdir(tmp_path)
    unseen = judge_node("node", look_from_node(str(tmp_path), "name"), now - 1, time.time(), str(tmp_path))
    assert "cannot write" in unseen.found and "on every node" in str(unseen.remedy)
