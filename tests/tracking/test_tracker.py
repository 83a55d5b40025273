"""The tracker in memory, and completing a tracker from the log."""

from pathlib import Path

from rcdist.tracking.jsonl import MetricsLog
from rcdist.tracking.tracker import Row, Tracker, reconcile
from tests.tracking.memory import MemoryTracker


def test_reconcile_adds_what_is_missing_and_nothing_twice(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    for step in (1, 2, 3):
        log.append(step, 100 + step, {"train/loss_nats": float(step)})
    log.append(4, 104, {"train/loss_nats": 4.0, "eval/loss_nats": 5.0})
    memory = MemoryTracker()
    tracker: Tracker = memory
    tracker.log(2, {"train/loss_nats": 2.5}, 99)
    for _ in range(2):
        reconcile(log.read(), tracker)
    assert memory.rows == [
        Row("train/loss_nats", 2.5, 99, 2),
        Row("train/loss_nats", 1.0, 101, 1),
        Row("train/loss_nats", 3.0, 103, 3),
        Row("train/loss_nats", 4.0, 104, 4),
        Row("eval/loss_nats", 5.0, 104, 4),
    ]


def test_memory_tracker_keeps_artifacts_and_status(tmp_path: Path) -> None:
    (tmp_path / "summary.txt").write_text("done")
    tracker = MemoryTracker()
    assert tracker.log_artifact(tmp_path / "summary.txt")
    assert tracker.flush(0)
    assert tracker.finish("KILLED", 0)
    assert (tracker.artifacts, tracker.status) == ({"summary.txt": b"done"}, "KILLED")
