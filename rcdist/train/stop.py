"""Why a run must end: files beside its checkpoints, by which driver and workers tell each other."""

import json
from pathlib import Path

from rcdist import errors
from rcdist.errors import RcdistError

_FILE = "stop.json"
_REQUEST = "stop-requested"


def write_stop(run_dir: Path, error: RcdistError) -> None:
    """Write down an error that no retry can mend. Any rank may call it; the last one to write is kept."""
    fields = {"class": type(error).__name__, "field": error.field, "rule": error.rule, "remedy": error.remedy}
    value = error.value if isinstance(error.value, str | int | float | bool | None) else str(error.value)
    temporary = run_dir / f"{_FILE}.part"
    temporary.write_text(json.dumps(fields | {"value": value}))
    temporary.replace(run_dir / _FILE)


def read_stop(run_dir: Path) -> RcdistError | None:
    """Return the error that was written down, None when there is none."""
    path = run_dir / _FILE
    if not path.exists():
        return None
    found = json.loads(path.read_text())
    made: RcdistError = getattr(errors, found["class"])(found["field"], found["value"], found["rule"], found["remedy"])
    return made


def request_stop(run_dir: Path) -> None:
    """Ask the workers for a checkpoint and the end; the driver's answer to SIGTERM."""
    (run_dir / _REQUEST).touch()


def is_stop_requested(run_dir: Path) -> bool:
    """Say whether the driver has asked for the end."""
    return (run_dir / _REQUEST).exists()


def clear_stop(run_dir: Path) -> None:
    """Forget both, before a run is started again."""
    (run_dir / _FILE).unlink(missing_ok=True)
    (run_dir / _REQUEST).unlink(missing_ok=True)
