"""MLflow on a real SQLite file: start, continue, status, refusals; every row once."""

import math
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from rcdist.errors import ConfigError
from rcdist.tracking.jsonl import MetricsLog
from rcdist.tracking.mlflow import MlflowTracker, check_server, start_or_continue
from rcdist.tracking.tracker import RunStatus, Tracker, reconcile

CONFIG = {"name": "tiny", "model": {"width": 64}, "tracking": {"uri": "http://ada:s3cret@host"}}


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"
    check_server(uri, "test", 10.0)
    return uri


def start(uri: str, run_id: str | None = None, config: Mapping[str, Any] = CONFIG, **tags: str) -> MlflowTracker:
    facts = {"parameters": {"stored": 12}}
    return start_or_continue(uri, "test", "tiny", run_id, config=config, facts=facts, tags=tags, timeout_s=10.0)


def points(uri: str, run_id: str, name: str) -> list[tuple[int, float, int]]:
    return [(p.step, p.value, p.timestamp) for p in MlflowClient(uri).get_metric_history(run_id, name)]


def artifact(uri: str, run_id: str, name: str, folder: Path) -> str:
    return Path(MlflowClient(uri).download_artifacts(run_id, name, str(folder))).read_text()


def test_a_new_run_has_settings_facts_tags_and_config_without_passwords(uri: str, tmp_path: Path) -> None:
    tracker = start(uri, plan="T cG@a")
    assert tracker.finish("FINISHED", 30)
    run = MlflowClient(uri).get_run(tracker.run_id)
    assert run.info.run_name == "tiny"
    assert run.data.params == {
        "name": "tiny",
        "model.width": "64",
        "tracking.uri": "http://***@host",
        "parameters.stored": "12",
    }
    assert run.data.tags["plan"] == "T cG@a"
    assert run.data.tags["version.torch"]
    stored = yaml.safe_load(artifact(uri, tracker.run_id, "config.yaml", tmp_path))
    assert stored == {**CONFIG, "tracking": {"uri": "http://***@host"}}


def test_records_arrive_with_step_and_timestamp(uri: str) -> None:
    tracker: Tracker = start(uri)
    tracker.log(10, {"train/loss_nats": 4.0, "perf/mfu": math.nan}, 1_000)
    tracker.log(20, {"train/loss_nats": 3.0}, 2_000)
    tracker.log(20, {"train/loss_nats": 9.0, "eval/loss_nats": 3.5}, 2_001)
    assert tracker.finish("FINISHED", 30)
    assert points(uri, tracker.run_id, "train/loss_nats") == [(10, 4.0, 1_000), (20, 3.0, 2_000)]
    assert points(uri, tracker.run_id, "eval/loss_nats") == [(20, 3.5, 2_001)]
    assert math.isnan(points(uri, tracker.run_id, "perf/mfu")[0][1])


def test_a_continued_run_is_the_same_run_and_has_no_step_twice(uri: str, tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    for step in range(1, 9):
        log.append(step, 100 * step, {"train/loss_nats": float(step)})
    first = start(uri)
    reconcile(log.read()[:5], first)
    assert first.finish("KILLED", 30)
    assert MlflowClient(uri).get_run(first.run_id).info.status == "KILLED"

    second = start(uri, first.run_id, {**CONFIG, "model": {"width": 65}, "new": 1}, plan="T")
    assert second.run_id == first.run_id
    assert MlflowClient(uri).get_run(first.run_id).info.status == "RUNNING"
    second.log(5, {"train/loss_nats": 5.5}, 7)  # done again after the checkpoint of step 4
    reconcile(log.read(), second)
    assert second.finish("FINISHED", 30)

    run = MlflowClient(uri).get_run(first.run_id)
    assert run.info.status == "FINISHED"
    assert points(uri, first.run_id, "train/loss_nats") == [(s, float(s), 100 * s) for s in range(1, 9)]
    assert (run.data.params["model.width"], run.data.params["new"]) == ("64", "1")
    assert (run.data.tags["changed/model.width"], run.data.tags["plan"]) == ("65", "T")
    files = sorted(file.path for file in MlflowClient(uri).list_artifacts(first.run_id))
    assert files == ["config.2.yaml", "config.yaml"]
    assert yaml.safe_load(artifact(uri, first.run_id, "config.2.yaml", tmp_path))["model"] == {"width": 65}


def test_continuing_with_the_same_settings_stores_nothing_again(uri: str) -> None:
    first = start(uri)
    first.finish("FAILED", 30)
    second = start(uri, first.run_id)
    second.finish("FINISHED", 30)
    assert [file.path for file in MlflowClient(uri).list_artifacts(first.run_id)] == ["config.yaml"]
    assert not any(name.startswith("changed/") for name in MlflowClient(uri).get_run(first.run_id).data.tags)


def test_a_batch_sent_again_after_a_lost_answer_is_stored_once(uri: str) -> None:
    tracker = start(uri)
    tracker.log(1, {"train/loss_nats": 1.0, "perf/mfu": math.nan}, 5)
    assert tracker.flush(30)
    again = start(uri, tracker.run_id)
    again._seen = type(again._seen)()  # as if the store had not told what it has
    again.log(1, {"train/loss_nats": 1.0, "perf/mfu": math.nan}, 5)
    again.log(2, {"train/loss_nats": 2.0}, 6)
    assert again.finish("FINISHED", 30)
    assert points(uri, tracker.run_id, "train/loss_nats") == [(1, 1.0, 5), (2, 2.0, 6)]
    assert len(points(uri, tracker.run_id, "perf/mfu")) == 1
    tracker.finish("FINISHED", 30)


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_the_status_is_true(uri: str, status: RunStatus) -> None:
    tracker = start(uri)
    assert MlflowClient(uri).get_run(tracker.run_id).info.status == "RUNNING"
    assert tracker.finish(status, 30)
    run = MlflowClient(uri).get_run(tracker.run_id)
    assert run.info.status == status
    assert run.info.end_time >= run.info.start_time


@pytest.mark.parametrize("gone", ["0" * 32, "not an id", "deleted"])
def test_a_run_that_is_gone_is_replaced_with_a_warning(uri: str, gone: str, caplog: pytest.LogCaptureFixture) -> None:
    if gone == "deleted":
        old = start(uri)
        old.finish("FINISHED", 30)
        gone = old.run_id
        MlflowClient(uri).delete_run(gone)
    tracker = start(uri, gone)
    assert tracker.run_id != gone
    assert f"MLflow run {gone} is not in" in caplog.text
    assert tracker.finish("FINISHED", 30)


def test_more_parameters_than_a_batch_takes_and_long_values(uri: str) -> None:
    config = {f"key{i}": "x" * 7000 for i in range(250)}
    tracker = start(uri, config=config)
    assert tracker.finish("FINISHED", 30)
    params = MlflowClient(uri).get_run(tracker.run_id).data.params
    assert len(params) == 251
    assert len(params["key249"]) == 6000


def test_an_artifact_that_is_missing_does_not_raise(uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker = start(uri)
    (tmp_path / "summary.txt").write_text("done")
    assert tracker.log_artifact(tmp_path / "summary.txt")
    assert not tracker.log_artifact(tmp_path / "none.txt")
    assert "none.txt was not stored" in caplog.text
    tracker.finish("FINISHED", 30)
    assert artifact(uri, tracker.run_id, "summary.txt", tmp_path / "..") == "done"


def test_several_runs_write_at_once(uri: str) -> None:
    trackers = [start(uri) for _ in range(4)]
    for step in range(300):
        for number, tracker in enumerate(trackers):
            tracker.log(step, {"train/loss_nats": number + step / 1000, "train/tokens": float(step)}, step)
    assert [tracker.finish("FINISHED", 60) for tracker in trackers] == [True] * 4
    for number, tracker in enumerate(trackers):
        assert points(uri, tracker.run_id, "train/loss_nats") == [(s, number + s / 1000, s) for s in range(300)]


def test_a_locked_store_delays_records_and_loses_none(uri: str) -> None:
    tracker = start(uri)
    lock = sqlite3.connect(uri.removeprefix("sqlite:///"))
    lock.execute("BEGIN IMMEDIATE")
    tracker.log(1, {"train/loss_nats": 1.0}, 1)
    assert not tracker.flush(0.5)
    lock.rollback()
    lock.close()
    assert tracker.finish("FINISHED", 60)
    assert points(uri, tracker.run_id, "train/loss_nats") == [(1, 1.0, 1)]


def refusal(uri: str, timeout_s: float = 10.0) -> str:
    with pytest.raises(ConfigError) as caught:
        check_server(uri, "test", timeout_s)
    text = str(caught.value)
    assert text.startswith("tracking.uri=")
    assert "\n" not in text
    return text


def test_stores_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("not a database, but long enough to have a header of some kind\n" * 20)
    (tmp_path / "file").write_text("")
    assert "file is not a database" in refusal(f"sqlite:///{tmp_path}/text.db")
    assert "cannot be used (" in refusal(f"sqlite:///{tmp_path}/file/mlflow.db")
    assert "unable to open database file" in refusal(f"sqlite:///{tmp_path}")
    assert "does not answer (Connection refused)" in refusal("http://127.0.0.1:9")
    assert "mlruns" in refusal(str(tmp_path / "mlruns"))


def test_a_server_that_accepts_and_is_silent_is_refused_in_time_and_without_its_password() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        text = refusal(f"http://ada:s3cret@127.0.0.1:{server.getsockname()[1]}", timeout_s=1.0)
    assert "does not answer (" in text
    assert "http://***@127.0.0.1" in text


def test_a_deleted_experiment_is_refused(uri: str) -> None:
    check_server(uri, "old", 10.0)
    client = MlflowClient(uri)
    client.delete_experiment(client.get_experiment_by_name("old").experiment_id)
    with pytest.raises(ConfigError, match=r'tracking.experiment="old": the experiment is deleted'):
        check_server(uri, "old", 10.0)


@pytest.mark.slow
def test_nothing_is_printed_and_nothing_lands_in_the_working_folder(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    code = """
from rcdist.tracking.mlflow import check_server, start_or_continue
uri = "sqlite:///../store/mlflow.db"
check_server(uri, "test", 10.0)
tracker = start_or_continue(uri, "test", "tiny", None, config={"a": 1}, facts={}, tags={}, timeout_s=10.0)
tracker.log(1, {"train/loss_nats": 1.0}, 1)
assert tracker.finish("FINISHED", 30)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path / "work", capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
    assert list((tmp_path / "work").iterdir()) == []
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == [
        ".mlflow.db.lock",
        "mlartifacts",
        "mlflow.db",
    ]
