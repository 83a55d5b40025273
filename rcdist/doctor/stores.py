"""Where a run writes: its storage and its tracking store, from here."""

import secrets
import shutil
from pathlib import Path

from rcdist.config import JobConfig
from rcdist.doctor.finding import Finding


def find_storage(config: JobConfig) -> Finding:
    """Write below storage_path, from here."""
    folder = config.storage
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try_to_write(str(folder), f".doctor-{secrets.token_hex(4)}")
    except OSError as error:
        remedy = "Give --storage_path of a folder that you may write"
        return Finding("storage", f"{folder} cannot be written ({error.strerror})", remedy)
    free = shutil.disk_usage(folder).free / 2**30
    return Finding("storage", f"{folder}, {free:.0f} GiB free")


def find_mlflow(config: JobConfig) -> Finding:
    """Reach the tracking store."""
    from rcdist.tracking.mlflow import check_server
    from rcdist.tracking.provenance import redact

    check_server(config.tracking_uri, config.tracking.experiment, config.tracking.timeout_s)
    return Finding("mlflow", redact(config.tracking_uri))


def try_to_write(folder: str, name: str) -> None:
    """Write a file and take it away again.

    Raises:
        OSError: that cannot be done.
    """
    path = Path(folder) / name
    path.write_text("doctor")
    path.unlink()
