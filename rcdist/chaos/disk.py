"""A small disk of its own for a run, to be filled to the last byte."""

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from rcdist.chaos.job import Job

_TMPFS_BYTES = 64 * 2**20


class NoDisk(Exception):
    """Report that no disk can be mounted here."""


@contextlib.contextmanager
def small_disk(job: Job) -> Iterator[None]:
    """Let the job's storage be a file system of 64 MiB while open.

    Raises:
        NoDisk: only root may mount one.
    """
    storage = job.storage = job.storage / f"small-{job.name}"
    storage.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_TMPFS_BYTES}", "tmpfs", str(storage)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        raise NoDisk(f"cannot be tried here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(storage)], check=True)


def fill(filler: Path, left_bytes: int) -> None:
    """Fill a disk up to some room, while others may write too."""
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while (free := shutil.disk_usage(filler).free) > left_bytes:
            file.write(bytes(min(free - left_bytes, 2**20)))
