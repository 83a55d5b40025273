"""metrics.jsonl: the log of a run's records, and the source of truth that MLflow is completed from."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rcdist.storage import warn_once
from rcdist.tracking.metrics import check_record

FILE_NAME = "metrics.jsonl"
_TAIL_BYTES = 65_536  # many times the longest line: METRICS bounds it


@dataclass(frozen=True)
class LogRecord:
    """Hold one record of metrics.

    Attributes:
        step: optimizer steps done.
        timestamp_ms: Unix time in milliseconds.
        metrics: metric name -> value.
    """

    step: int
    timestamp_ms: int
    metrics: Mapping[str, float]


class MetricsLog:
    """Append and read <run_dir>/metrics.jsonl, one JSON object per line, steps ascending, no step twice.

    Values that are not finite are written as the strings "nan", "inf" and "-inf", so that every JSON reader takes the
    file. One process appends; others may read at the same time. While the disk is full records wait in memory for the
    next one. A line that a power cut has damaged is passed over.

    Args:
        run_dir: folder of the run; made on the first append.
    """

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / FILE_NAME
        self._offset = 0
        self._last_line = b""
        self._waiting: list[tuple[int, bytes]] = []

    def append(self, step: int, timestamp_ms: int, metrics: Mapping[str, float]) -> None:
        """Write one record through to the file, after those that wait.

        A line that an earlier writer left unfinished is cut off. Records of this step or a later one are of work that
        was lost when training went back to a checkpoint: they are dropped.
        """
        check_record(metrics)
        values = {name: float(value) if math.isfinite(value) else str(float(value)) for name, value in metrics.items()}
        line = json.dumps({"step": step, "timestamp_ms": timestamp_ms, "metrics": values}) + "\n"
        self._waiting = [(other, text) for other, text in self._waiting if other < step] + [(step, line.encode())]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b", buffering=0) as file:
                while self._waiting:
                    step, data = self._waiting[0]
                    last = _drop_unfinished_line(file)
                    if last is not None and last.step >= step:
                        _truncate(file, step - 1)
                    if file.write(data) != len(data):
                        break
                    del self._waiting[0]
        except OSError as error:
            warn_once(self.path, f"{self.path} cannot be written, records wait in memory: {error.strerror}")

    def append_record(self, record: Mapping[str, float]) -> None:
        """Append a record as workers send it, with `step` and `timestamp_ms` among its metrics."""
        metrics = {name: value for name, value in record.items() if name not in ("step", "timestamp_ms")}
        self.append(int(record["step"]), int(record["timestamp_ms"]), metrics)

    def truncate_after(self, step: int) -> None:
        """Drop the records of later steps, before training continues from the checkpoint of `step`."""
        if self.path.exists():
            with self.path.open("r+b") as file:
                _drop_unfinished_line(file)
                _truncate(file, step)

    def complete(self, records: Sequence[Mapping[str, float]]) -> None:
        """Append those of a checkpoint's newest records that had not arrived when a process was killed.

        Args:
            records: metrics with `step` and `timestamp_ms` among them, steps ascending.
        """
        last_step = max((record.step for record in self.read()), default=0)
        for record in records:
            if record["step"] > last_step:
                self.append_record(record)

    def read(self) -> list[LogRecord]:
        """Return all records; an unfinished last line is left out."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            return [record for _, record in _read_lines(file, 0) if record is not None]

    def read_new(self) -> list[LogRecord]:
        """Return the records appended since the last call; after a truncation, all records again."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self._offset - len(self._last_line))
            if file.read(len(self._last_line)) != self._last_line:
                self._offset, self._last_line = 0, b""
            records = []
            for line, record in _read_lines(file, self._offset):
                self._offset += len(line)
                self._last_line = line
                if record is not None:
                    records.append(record)
            return records


def _parse(line: bytes) -> LogRecord | None:
    """Return the record of a line, None if it is damaged."""
    try:
        data = json.loads(line)
        metrics = {name: float(value) for name, value in data["metrics"].items()}
        return LogRecord(data["step"], data["timestamp_ms"], metrics)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _read_lines(file: IO[bytes], offset: int) -> Iterator[tuple[bytes, LogRecord | None]]:
    file.seek(offset)
    for line in file:
        if not line.endswith(b"\n"):
            return
        yield line, _parse(line)


def _drop_unfinished_line(file: IO[bytes]) -> LogRecord | None:
    """Cut an unfinished or damaged end off and return the last record, None when there is none."""
    size = file.seek(0, 2)
    start = file.seek(max(size - _TAIL_BYTES, 0))
    tail = file.read()
    end = tail.rfind(b"\n") + 1
    while end:
        begin = tail.rfind(b"\n", 0, end - 1) + 1
        last = _parse(tail[begin:end])
        if last is not None:
            break
        end = begin
    else:
        last = None
    if start + end < size:
        file.truncate(start + end)
    return last


def _truncate(file: IO[bytes], step: int) -> None:
    """Drop the records after `step`."""
    end = 0
    for line, record in _read_lines(file, 0):
        if record is not None and record.step > step:
            break
        end += len(line)
    file.truncate(end)
