"""A study on a real Ray: every run is the run that it would be alone, is measured, and is done once."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import ray
from mlflow import MlflowClient

from rcdist.config.cli import dump_config
from rcdist.errors import EXIT_STOPPED, BudgetError, ConfigError, RetriesError
from rcdist.launch import run
from rcdist.study.driver import plan_runs, train_study
from rcdist.study.results import QUALITY, read_study
from rcdist.study.worker import RESULT, read_result
from tests.conftest import ROOT
from tests.study.small import ARMS, small_study
from tests.waiting import wait_for


def test_runs_are_seed_by_seed_and_of_the_arms_asked_for(tmp_path: Path) -> None:
    config = small_study(tmp_path, {**ARMS, "T": {"seeds": 1}}, seeds=2)
    assert [run.config.name for run in plan_runs(config)] == ["s-T-0", "s-U-0", "s-narrow-0", "s-U-1", "s-narrow-1"]
    config = small_study(tmp_path, only=["U"])
    assert [run.config.name for run in plan_runs(config)] == ["s-U-0"]


def test_what_cannot_be_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="arms="):
        plan_runs(small_study(tmp_path, {}))
    two = small_study(tmp_path, {"T": {"settings": {"cluster.num_workers": 2}}})
    with pytest.raises(ConfigError, match=r"cluster\.num_workers=2: a run of a study has one worker"):
        plan_runs(two)
    bucket = small_study(tmp_path).model_copy(update={"storage_path": "s3://bucket/x"})
    with pytest.raises(ConfigError, match="a study needs a folder"):
        plan_runs(bucket)


@pytest.mark.slow
def test_a_study_is_trained_measured_and_done_once(ray_cpu: None, tmp_path: Path, mlflow_db: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(mlflow_db.read_bytes())
    text = tmp_path / "sea.txt"
    text.write_text("Call me Ishmael. Some years ago, never mind how long precisely. " * 40)
    arms = {"T": {"seeds": 2}, "U": ARMS["U"]}
    lines: list[str] = []
    train_study(small_study(tmp_path, arms, texts={"sea": str(text)}, only=["T"]), lines.append)
    train_study(small_study(tmp_path, arms, texts={"sea": str(text)}), lines.append)
    assert sorted(line.split()[2] for line in lines if "bits/byte" in line) == ["s-T-0", "s-T-1", "s-U-0"]
    config = small_study(tmp_path, arms, texts={"sea": str(text)})
    result = read_study(config)
    assert list(result.arms["T"].values[QUALITY]) == [0, 1]
    assert result.arms["U"].values["evaluate/sea/bits_per_byte"][0] > 0
    # A run of a study is the run that the same settings make by themselves, bit for bit.
    # In a process of its own: it leaves a process group behind.
    by_itself = config.run_config("U", 0).model_copy(update={"name": "alone"})
    alone = ray.get(ray.remote(max_calls=1)(run).remote(by_itself, here=True))
    assert alone.metrics[QUALITY] == result.arms["U"].values[QUALITY][0]
    assert not list(config.run_config("T", 0).run_dir.glob("step-*"))
    assert alone.checkpoint is not None

    lines.clear()
    train_study(config, lines.append)
    assert lines == ["all 3 runs are done"]
    other = small_study(tmp_path, {"T": {"settings": {"optimizer.learning_rate": 0.1}}})
    with pytest.raises(ConfigError, match="is done, with other settings"):
        train_study(other, lines.append)


@pytest.mark.slow
def test_a_run_that_fails_stops_no_other(ray_cpu: None, tmp_path: Path, mlflow_db: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(mlflow_db.read_bytes())
    arms = {"bad": {"settings": {"cost.budget_device_s": 1e-9}}, "T": {}}
    config = small_study(tmp_path, arms)
    lines: list[str] = []
    with pytest.raises(RetriesError, match=r'name="s": 1 of its runs failed; the first, s-bad-0: .*budget_device_s'):
        train_study(config, lines.append)
    assert read_result(config.run_config("bad", 0)) is None
    assert (config.run_config("T", 0).run_dir / RESULT).is_file()
    with pytest.raises(BudgetError, match=r"study\.max_wall_s=1e-06: over with 1 runs left, s-bad-0 the next"):
        train_study(small_study(tmp_path, arms, max_wall_s=1e-6), lines.append)


@pytest.mark.exhaustive
def test_an_interrupted_study_says_so_and_goes_on(tmp_path: Path) -> None:
    config = small_study(tmp_path, {"T": {"settings": {"train.steps": 100_000}}, "U": ARMS["U"]})
    file = tmp_path / "long.yaml"
    file.write_text(dump_config(config))
    command = [sys.executable, str(ROOT / "jobs/study.py"), "train", "--config", str(file)]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    client = MlflowClient(config.tracking_uri)
    try:
        records = config.run_config("T", 0).run_dir / "metrics.jsonl"
        wait_for(
            lambda: records.exists() and read_result(config.run_config("U", 0)) is not None, process, timeout_s=300
        )
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == EXIT_STOPPED
    finally:
        process.kill()
    experiment = client.get_experiment_by_name("rcdist")
    assert experiment is not None
    statuses = {run.info.run_name: run.info.status for run in client.search_runs([experiment.experiment_id])}
    assert statuses == {"s": "KILLED", "s-T-0": "KILLED", "s-U-0": "FINISHED"}
