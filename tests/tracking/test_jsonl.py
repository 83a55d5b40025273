"""metrics.jsonl: what is appended is read, also after a crash at any byte and after training went back."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcdist.tracking.jsonl import LogRecord, MetricsLog


def write(run_dir: Path, steps: list[int], loss: float = 1.0) -> None:
    for step in steps:
        MetricsLog(run_dir).append(step, 1000 + step, {"train/loss_nats": loss})


def steps_of(records: list[LogRecord]) -> list[int]:
    return [record.step for record in records]


def test_append_and_read_keep_every_digit_and_what_is_not_finite(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "new")
    assert log.read() == log.read_new() == []
    values = {"train/loss_nats": 0.1 + 0.2, "train/grad_norm": math.inf, "perf/mfu": math.nan, "train/tokens": 2**53}
    log.append(3, 1_700_000_000_123, values)
    (record,) = log.read()
    assert (record.step, record.timestamp_ms) == (3, 1_700_000_000_123)
    assert record.metrics["train/loss_nats"] == 0.1 + 0.2
    assert record.metrics["train/grad_norm"] == math.inf
    assert math.isnan(record.metrics["perf/mfu"])
    assert record.metrics["train/tokens"] == 2**53

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    json.loads(log.path.read_text(), parse_constant=refuse)  # strict JSON


def test_an_unknown_metric_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        MetricsLog(tmp_path).append(1, 1, {"loss": 1.0})
    assert not (tmp_path / "metrics.jsonl").exists()


def test_records_of_lost_steps_are_dropped(tmp_path: Path) -> None:
    write(tmp_path, [10, 20, 30, 40])
    write(tmp_path, [30], loss=2.0)
    records = MetricsLog(tmp_path).read()
    assert steps_of(records) == [10, 20, 30]
    assert records[-1].metrics == {"train/loss_nats": 2.0}


def test_truncate_after(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.truncate_after(5)
    write(tmp_path, [10, 20, 30])
    log.truncate_after(20)
    assert steps_of(log.read()) == [10, 20]
    log.truncate_after(0)
    assert log.path.read_bytes() == b""
    write(tmp_path, [1])
    assert steps_of(log.read()) == [1]


def test_read_new_follows_the_writer_and_starts_over_after_a_truncation(tmp_path: Path) -> None:
    reader = MetricsLog(tmp_path)
    write(tmp_path, [10, 20])
    assert steps_of(reader.read_new()) == [10, 20]
    assert reader.read_new() == []
    with reader.path.open("ab") as file:
        file.write(b'{"step": 30, "timest')
    assert reader.read_new() == []
    write(tmp_path, [30])
    assert steps_of(reader.read_new()) == [30]
    write(tmp_path, [20, 30], loss=9.0)  # same length as before
    assert steps_of(reader.read_new()) == [10, 20, 30]
    assert reader.read_new() == []


@given(cut=st.integers(0, 400), resumed=st.integers(1, 6))
def test_a_crash_at_any_byte_leaves_every_step_once(
    tmp_path_factory: pytest.TempPathFactory, cut: int, resumed: int
) -> None:
    run_dir = tmp_path_factory.mktemp("run")
    write(run_dir, [1, 2, 3, 4, 5])
    path = run_dir / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:cut])
    survived = steps_of(MetricsLog(run_dir).read())
    assert survived == [1, 2, 3, 4, 5][: len(survived)]
    write(run_dir, list(range(resumed, 8)))
    assert steps_of(MetricsLog(run_dir).read()) == [s for s in survived if s < resumed] + list(range(resumed, 8))
    assert path.read_bytes().endswith(b"\n")
