"""Where a run writes: its storage and its tracking store, from here."""

import secrets
import shutil
from pathlib import Path

from rcdist.bucket import is_bucket, open_bucket
from rcdist.config import JobConfig
from rcdist.doctor.finding import Finding


def find_storage(config: JobConfig) -> Finding:
    """Write below storage_path, from here."""
    folder, place = config.storage, place_of(config)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try_to_write(place, f".doctor-{secrets.token_hex(4)}")
    except OSError as error:
        what = "folder that you may write" if config.bucket is None else "bucket, and credentials, that may write it"
        reason = " ".join(str(error.strerror or error).split())
        return Finding("storage", f"{place} cannot be written ({reason})", f"Give --storage_path of a {what}")
    free = shutil.disk_usage(folder).free / 2**30
    return Finding("storage", f"{place}, {free:.0f} GiB free" + ("" if config.bucket is None else f" in {folder}"))


def find_mlflow(config: JobConfig) -> Finding:
    """Reach the tracking store."""
    from rcdist.tracking.mlflow import check_server
    from rcdist.tracking.provenance import redact

    check_server(config.tracking_uri, config.tracking.experiment, config.tracking.timeout_s)
    return Finding("mlflow", redact(config.tracking_uri))


def place_of(config: JobConfig) -> str:
    """Return what every node must be able to write: a folder, or a bucket's URL."""
    return str(config.storage) if config.bucket is None else config.bucket.url


def try_to_write(place: str, name: str) -> None:
    """Write a file or object and take it away again.

    Raises:
        OSError: that cannot be done.
    """
    if is_bucket(place):
        bucket = open_bucket(place)
        bucket.write(name, "doctor")
        bucket.delete(name)
        return
    path = Path(place) / name
    path.write_text("doctor")
    path.unlink()
