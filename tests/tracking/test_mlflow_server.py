"""A real `mlflow server` process that dies and returns; jobs of several processes on one SQLite file."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from rcdist.chaos.mlflow_server import MlflowServer
from rcdist.errors import ConfigError
from rcdist.tracking.jsonl import MetricsLog
from rcdist.tracking.mlflow import MlflowTracker, check_server, start_or_continue
from rcdist.tracking.tracker import reconcile

pytestmark = pytest.mark.slow


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MlflowServer]:
    """Give a server that is not running yet."""
    server = MlflowServer(tmp_path / "server")
    yield server
    server.kill()


def start_run(uri: str, run_id: str | None = None) -> MlflowTracker:
    config = {"train": {"steps": 60}}
    return start_or_continue(uri, "test", "tiny", run_id, config=config, facts={}, tags={}, timeout_s=5.0)


def rows(uri: str, run_id: str, name: str) -> list[tuple[int, float, int]]:
    return sorted((p.step, p.value, p.timestamp) for p in MlflowClient(uri).get_metric_history(run_id, name))


@pytest.mark.exhaustive
def test_an_outage_loses_nothing_and_doubles_nothing(
    server: MlflowServer, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    uri = server.uri
    with pytest.raises(ConfigError, match="does not answer"):
        check_server(uri, "test", 5.0)
    server.start()
    check_server(uri, "test", 60.0)
    tracker = start_run(uri)
    log = MetricsLog(tmp_path / "run")

    def train(first: int, last: int, to: MlflowTracker) -> None:
        for step in range(first, last + 1):
            log.append(step, 1000 + step, {"train/loss_nats": step / 7, "eval/loss_nats": step / 3})
        for record in log.read_new():
            began = time.monotonic()
            to.log(record.step, record.metrics, record.timestamp_ms)
            assert time.monotonic() - began < 1.0  # an outage would cost 5 s

    expected = [(step, step / 7, 1000 + step) for step in range(1, 61)]
    train(1, 20, tracker)
    assert tracker.flush(60)

    server.kill()
    train(21, 40, tracker)
    assert not tracker.flush(0.5)
    server.start()
    assert tracker.flush(60)
    assert rows(uri, tracker.run_id, "train/loss_nats") == expected[:40]

    server.kill()
    train(41, 50, tracker)
    assert not tracker.finish("KILLED", 1.0)
    assert "20 values are not stored" in caplog.text
    assert not tracker.log_artifact(log.path)

    server.start()  # the next start of the run
    again = start_run(uri, tracker.run_id)
    assert again.run_id == tracker.run_id
    reconcile(log.read(), again)
    train(51, 60, again)
    assert again.log_artifact(log.path)
    assert again.finish("FINISHED", 60)
    assert rows(uri, tracker.run_id, "train/loss_nats") == expected
    assert len(rows(uri, tracker.run_id, "eval/loss_nats")) == 60
    assert MlflowClient(uri).get_run(tracker.run_id).info.status == "FINISHED"
    files = sorted(file.path for file in MlflowClient(uri).list_artifacts(tracker.run_id))
    assert files == ["config.yaml", "metrics.jsonl"]
    assert capfd.readouterr().out == ""


JOB = """
import sys
from rcdist.tracking.mlflow import check_server, start_or_continue
uri, name = sys.argv[1:]
check_server(uri, "test", 30.0)
tracker = start_or_continue(uri, "test", name, None, config={}, facts={}, tags={}, timeout_s=30.0)
for step in range(500):
    tracker.log(step, {"train/loss_nats": float(step), "train/tokens": float(step)}, step)
assert tracker.finish("FINISHED", 60)
print(tracker.run_id)
"""


def test_three_jobs_set_up_and_write_one_file_at_once(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    command = [sys.executable, "-c", JOB, uri]
    jobs = [subprocess.Popen([*command, str(i)], stdout=subprocess.PIPE, text=True) for i in range(3)]
    run_ids = [job.communicate()[0].strip() for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0, 0]
    for run_id in run_ids:
        assert [step for step, _, _ in rows(uri, run_id, "train/loss_nats")] == list(range(500))
        assert MlflowClient(uri).get_run(run_id).info.status == "FINISHED"
