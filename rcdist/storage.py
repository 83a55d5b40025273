"""Files that outlive kills, power cuts and full disks: how to write and read small ones, and append lines."""

import contextlib
import json
import logging
import os
import secrets
import shutil
import tempfile
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

logger = logging.getLogger("rcdist")


def write_file(path: Path, text: str, *, durably: bool = True) -> None:
    """Write a whole small file in one step: whoever reads it, or is killed in between, has the old one or the new one.

    Args:
        path: its folder must exist; on object stores that are mounted as folders a rename is a copy, but never half.
        text: of the file.
        durably: it outlives a power cut. Cost: some milliseconds.

    Raises:
        OSError: it cannot be written; the old file stands.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")  # of several writers each has its own
    try:
        with part.open("w") as file:
            file.write(text)
            if durably:
                file.flush()
                os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    if durably:
        sync_folder(path.parent)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder, which becomes `path` in one step when all is in it, readable for everyone.

    Args:
        path: is not there, or an empty folder.

    Raises:
        OSError: it cannot be written, or `path` has something in it by then; nothing is left of it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
    try:
        yield temporary
        for inside in (temporary, *temporary.rglob("*")):
            inside.chmod(0o755 if inside.is_dir() else 0o644)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def try_write(path: Path, text: str, *, durably: bool = True) -> bool:
    """Write a file that nothing depends on; say once per file that it cannot be written, and return whether it was."""
    try:
        write_file(path, text, durably=durably)
    except OSError as error:
        warn_once(path, f"{path} cannot be written: {error.strerror}")
        return False
    return True


def read_json(path: Path) -> dict[str, Any]:
    """Return what `write_file` wrote; {} for no file, and for a damaged one, which is said once."""
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        found = error
    if isinstance(found, dict):
        return found
    warn_once(path, f"{path} is damaged and passed over")
    return {}


def sync_folder(folder: Path) -> None:
    """Make what was created or renamed in a folder outlive a power cut, where the file system can say so."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class LineFile:
    """Append lines to a file; while the disk is full they wait in memory, in order, for the next line.

    Args:
        path: of the file; its folder must exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting: deque[str] = deque()

    def append(self, line: str) -> None:
        """Write a line through to the file, after those that wait."""
        self._waiting.append(line)
        self.flush()

    def flush(self) -> None:
        """Write what waits, if there is room now."""
        if not self._waiting:
            return
        try:
            # A write that broke off has left half a line behind.
            with self.path.open("a+b", buffering=0) as file:
                end = file.seek(0, os.SEEK_END)
                if end and os.pread(file.fileno(), 1, end - 1) != b"\n":
                    file.truncate(_end_of_lines(file.fileno(), end))
                while self._waiting:
                    data = f"{self._waiting[0]}\n".encode()
                    if file.write(data) != len(data):
                        return
                    self._waiting.popleft()
        except OSError as error:
            warn_once(self.path, f"{self.path} cannot be written, its lines wait in memory: {error.strerror}")


def _end_of_lines(handle: int, size: int) -> int:
    """Return where the last whole line ends."""
    block = 65_536
    while size > 0:
        start = max(size - block, 0)
        found = os.pread(handle, size - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        size = start
    return 0


def say(text: str, stream: TextIO | None = None) -> None:
    """Print a line at once; where the output goes to a full disk it is lost, and nothing else."""
    with contextlib.suppress(OSError):
        print(text, file=stream, flush=True)


_warned: set[Path] = set()


def warn_once(path: Path, text: str) -> None:
    """Warn of what is the matter with a file, once per process."""
    if path not in _warned:
        _warned.add(path)
        logger.warning("%s", text)
