"""A Tracker that keeps everything in memory."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rcdist.tracking.tracker import Row, RunStatus, Seen


@dataclass
class MemoryTracker:
    """Keep everything in memory.

    Attributes:
        run_id: id of the run.
        rows: values in the order logged.
        artifacts: file name -> content.
        status: set by `finish`.
    """

    run_id: str = "memory"
    rows: list[Row] = field(default_factory=list)
    artifacts: dict[str, bytes] = field(default_factory=dict)
    status: RunStatus | None = None
    _seen: Seen = field(default_factory=Seen, repr=False)

    def log(self, step: int, record: Mapping[str, float], timestamp_ms: int) -> None:
        """See Tracker.log."""
        self.rows.extend(self._seen.select_new(step, record, timestamp_ms))

    def log_artifact(self, path: Path) -> bool:
        """See Tracker.log_artifact."""
        self.artifacts[path.name] = path.read_bytes()
        return True

    def flush(self, timeout_s: float) -> bool:
        """See Tracker.flush."""
        return True

    def finish(self, status: RunStatus, timeout_s: float) -> bool:
        """See Tracker.finish."""
        self.status = status
        return True
