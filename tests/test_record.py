"""The record of a run that ended: MLflow is given what it missed, and the table shows the newest values."""

import json
from pathlib import Path

from mlflow import MlflowClient

from rcdist.config import JobConfig
from rcdist.model.cost import count_parameters
from rcdist.record import complete_record, read_record_state, summarise, write_record_state
from rcdist.tracking.jsonl import MetricsLog
from rcdist.tracking.mlflow import check_server, start_or_continue
from rcdist.tracking.prices import resolve_price
from rcdist.tracking.tracker import MemoryTracker
from rcdist.train.checkpoint import read_manifest
from tests.train.test_checkpoint import make_checkpoint

CONFIG = JobConfig(model={"num_layers": 2, "width": 32, "glu_width": 48})


def test_a_new_run_has_no_state_and_what_is_written_comes_back(tmp_path: Path) -> None:
    assert read_record_state(tmp_path) == {}
    write_record_state(tmp_path, "abc", is_complete=False)
    assert read_record_state(tmp_path) == {"mlflow_run_id": "abc", "is_complete": False}


def test_a_record_that_mlflow_does_not_have_whole_is_completed_once(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"storage_path": str(tmp_path)})
    check_server(config.tracking_uri, config.tracking.experiment, 10.0)
    manifest = read_manifest(make_checkpoint(config.run_dir, 3))
    # The log was cut off after step 1; the checkpoint has step 2 and 3.
    log = MetricsLog(config.run_dir)
    log.append(1, 1, {"train/loss_nats": 4.0})
    manifest.records = [{"step": s, "timestamp_ms": s, "train/loss_nats": 4.0 / s} for s in (2, 3)]
    tracker = start_or_continue(
        config.tracking_uri, "rcdist", config.name, None, config={}, facts={}, tags={}, timeout_s=10.0
    )
    tracker.log(1, {"train/loss_nats": 4.0}, 1)
    assert tracker.flush(30.0)
    write_record_state(config.run_dir, tracker.run_id, is_complete=False)
    complete_record(config, manifest)
    client = MlflowClient(config.tracking_uri)
    assert client.get_run(tracker.run_id).info.status == "FINISHED"
    points = client.get_metric_history(tracker.run_id, "train/loss_nats")
    assert [(p.step, p.value) for p in points] == [(1, 4.0), (2, 2.0), (3, 4.0 / 3)]
    assert read_record_state(config.run_dir)["is_complete"] is True
    manifest.records.append({"step": 4, "timestamp_ms": 4, "train/loss_nats": 1.0})
    complete_record(config, manifest)  # nothing is asked of MLflow again
    assert len(client.get_metric_history(tracker.run_id, "train/loss_nats")) == 3


def test_the_table_shows_the_newest_value_of_each_metric_and_the_newest_checkpoint(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"storage_path": str(tmp_path)})
    log = MetricsLog(config.run_dir)
    log.append(10, 1, {"train/loss_mean_nats": 5.0, "eval/loss_nats": 6.5})
    log.append(20, 2, {"train/loss_mean_nats": 4.0})
    make_checkpoint(config.run_dir, 10)
    newest = make_checkpoint(config.run_dir, 20)
    price, counts = resolve_price(config.cost, None, 1.0), count_parameters(config.model, config.reservoir)
    text = summarise(config, "KILLED", counts, price, MemoryTracker("run-7"), log, 61.0)
    rows = {line[:23].strip(): line[23:].strip() for line in text.splitlines()}
    assert rows["run"] == "tiny (KILLED)" and rows["steps"] == "20 of 600" and rows["wall time"] == "1m01s"
    assert rows["training loss"].startswith("4.0000") and rows["held-out loss"].startswith("6.5000")
    assert rows["checkpoint"] == str(newest) and rows["MLflow run"] == "run-7"
    assert json.dumps(counts.stored) == rows["parameters stored"].replace(",", "")
