"""The record of a run: opened, polled and closed; MLflow is given what it missed, and a full disk hides nothing."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from rcdist import storage
from rcdist.checkpoint.find import Found, find_newest_valid
from rcdist.checkpoint.manifest import MANIFEST
from rcdist.config import JobConfig
from rcdist.record import RunRecord, is_complete, newest_metrics
from rcdist.tracking.jsonl import LogRecord, MetricsLog
from rcdist.tracking.mlflow import check_server, start_or_continue
from rcdist.tracking.tracker import RunStatus
from rcdist.train.events import EVENTS
from tests.checkpoint.test_manifest import make_checkpoint
from tests.tracking.memory import MemoryTracker

CONFIG = JobConfig(model={"num_layers": 2, "width": 32, "glu_width": 48})


@pytest.fixture
def config(tmp_path: Path) -> JobConfig:
    config = CONFIG.model_copy(update={"storage_path": str(tmp_path)})
    config.run_dir.mkdir(parents=True)
    return config


def write(config: JobConfig, *steps: int) -> None:
    """Append records as Ray's controller does."""
    log = MetricsLog(config.run_dir)
    for step in steps:
        log.append(step, step, {"train/loss_nats": 4.0 / step})


def save(config: JobConfig, step: int, *records: int) -> Found:
    """Leave a checkpoint that carries the records of some steps."""
    path = make_checkpoint(config.run_dir, step) / MANIFEST
    data = json.loads(path.read_text())
    data["state"]["records"] = [{"step": s, "timestamp_ms": s, "train/loss_nats": 4.0 / s} for s in records]
    path.write_text(json.dumps(data))
    found = find_newest_valid(config.run_dir)
    assert found is not None
    return found


def opened(config: JobConfig, resume: Found | None = None, **more: Any) -> tuple[RunRecord, MemoryTracker, dict]:
    """Open a record with a tracker in memory; return both, and what the tracker was asked for."""
    tracker, asked = MemoryTracker("run-7"), {}

    def connect(*arguments: Any, **options: Any) -> MemoryTracker:
        asked.update(options, run_id=arguments[3])
        return tracker

    return RunRecord(config, resume, {"fact": 1}, connect=connect, **more), tracker, asked


def test_a_new_run_passes_every_record_on_once_and_in_order(config: JobConfig) -> None:
    seen: list[LogRecord] = []
    record, tracker, asked = opened(config, on_record=seen.append)
    assert asked["run_id"] is None and asked["facts"] == {"fact": 1} and not is_complete(config.run_dir)
    write(config, 1, 2)
    record.poll()
    write(config, 3)
    record.poll()
    record.poll()
    assert [r.step for r in seen] == [row.step for row in tracker.rows] == [1, 2, 3]
    record.close("FINISHED", "the table")
    assert tracker.status == "FINISHED" and is_complete(config.run_dir)
    assert tracker.artifacts == {"summary.txt": b"the table\n"}


def test_a_continued_run_drops_what_was_lost_and_gets_what_was_on_its_way(config: JobConfig) -> None:
    write(config, 1, 2, 5)
    seen: list[LogRecord] = []
    _, tracker, asked = opened(config, save(config, 4, 2, 3, 4), on_record=seen.append)
    assert [r.step for r in MetricsLog(config.run_dir).read()] == [row.step for row in tracker.rows] == [1, 2, 3, 4]
    assert seen == []  # they were shown before
    opened(config)
    assert asked["run_id"] is None
    assert opened(config)[2]["run_id"] == "run-7"


@pytest.mark.parametrize("status", ["KILLED", "FAILED"])
def test_a_run_that_is_stopped_at_its_last_step_is_not_complete(config: JobConfig, status: RunStatus) -> None:
    opened(config)[0].close(status, "the table")
    assert not is_complete(config.run_dir)  # the next start, which finds all steps done, says so to MLflow


def test_a_run_that_starts_from_another_has_an_empty_record(config: JobConfig, tmp_path: Path) -> None:
    other = config.model_copy(update={"name": "parent"})
    _, tracker, _ = opened(config, save(other, 4, 3, 4))
    assert tracker.rows == [] and MetricsLog(config.run_dir).read() == []


def test_metrics_can_be_added_to_the_last_record(config: JobConfig) -> None:
    record, tracker, _ = opened(config)
    write(config, 1, 2)
    record.poll()
    record.amend_last({"yardstick/gzip_bits_per_byte": 2.5})
    assert MetricsLog(config.run_dir).read()[-1].metrics == {
        "train/loss_nats": 2.0,
        "yardstick/gzip_bits_per_byte": 2.5,
    }
    assert [(row.step, row.name) for row in tracker.rows][-1] == (2, "yardstick/gzip_bits_per_byte")
    assert newest_metrics(record.log.read())["train/loss_nats"] == 2.0


def test_a_full_disk_at_the_end_costs_files_and_not_the_status(
    config: JobConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    record, tracker, _ = opened(config)
    (config.run_dir / EVENTS).write_text("{}\n")

    def fsync(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.os, "fsync", fsync)
    record.close("FAILED", "the table")
    assert tracker.status == "FAILED" and set(tracker.artifacts) == {EVENTS}
    assert caplog.text.count("No space left on device") == 2


def test_a_record_that_mlflow_does_not_have_whole_is_completed(config: JobConfig, mlflow_db: Path) -> None:
    shutil.copy(mlflow_db, config.storage)
    check_server(config.tracking_uri, config.tracking.experiment, 10.0)
    write(config, 1)
    first = RunRecord(config, None, {})
    assert first.tracker.flush(30.0)
    write(config, 1)
    # The driver was killed; the checkpoint has steps 2 and 3, and MLflow neither them nor the end.
    again = RunRecord(config, save(config, 3, 2, 3), {}, connect=start_or_continue)
    again.close("FINISHED")
    client = MlflowClient(config.tracking_uri)
    assert client.get_run(first.tracker.run_id).info.status == "FINISHED"
    points = client.get_metric_history(first.tracker.run_id, "train/loss_nats")
    assert [(p.step, p.value) for p in points] == [(1, 4.0), (2, 2.0), (3, 4.0 / 3)]
    assert is_complete(config.run_dir)


def test_a_record_is_passed_on_once_however_often_the_log_is_cut_off(config: JobConfig) -> None:
    seen: list[int] = []
    record = RunRecord(config, None, {}, lambda new: seen.append(new.step), connect=lambda *_, **__: MemoryTracker())
    for step in (1, 2, 3, 4):
        write(config, step)
    record.poll()
    MetricsLog(config.run_dir).truncate_after(2)  # workers were replaced, and go on from step 2
    MetricsLog(config.run_dir).append(3, 99, {"train/loss_nats": 1.0})
    record.poll()
    assert seen == [1, 2, 3, 4, 3]


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_a_damaged_run_file_is_as_none(config: JobConfig, text: str) -> None:
    config.run_dir.mkdir(parents=True, exist_ok=True)
    (config.run_dir / "run.json").write_text(text)
    assert not is_complete(config.run_dir)
