"""A run's small files in a bucket: every node works on files of its own, and pushes and pulls those it shares."""

import contextlib
import logging
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from rcdist.bucket import Bucket

logger = logging.getLogger("rcdist")

DRIVER_FILES = ("config.yaml", "cost.txt", "metrics.jsonl", "run.json", "summary.txt", "failure.txt")
"""What the driver writes, and Ray Train's controller on its node."""
WORKER_FILES = ("ledger.json", "events.jsonl")
"""What rank 0 writes."""
_EVERY_S = 5.0


class RunMirror:
    """Keep a run's small files in the bucket up to date; without a bucket every method does nothing.

    What cannot be pushed now is pushed later, with the next call, and said once: training does not stop for it.

    Args:
        bucket: of the storage; None: it is a folder, which all nodes see.
        prefix: of the run.
        run_dir: folder of the run on this node.
    """

    def __init__(self, bucket: Bucket | None, prefix: str, run_dir: Path) -> None:
        self._bucket, self._prefix, self._run_dir = bucket, prefix, run_dir
        self._pushed: dict[str, tuple[int, int]] = {}
        self._is_out = False

    def push(self, names: Iterable[str]) -> None:
        """Write the files that are there and have changed since the last call."""
        if self._bucket is None:
            return
        with self._going_on():
            for name in names:
                try:
                    found = (self._run_dir / name).stat()
                except OSError:
                    continue
                state = (found.st_mtime_ns, found.st_size)
                if self._pushed.get(name) != state:
                    self._bucket.upload(self._run_dir / name, f"{self._prefix}/{name}")
                    self._pushed[name] = state

    def create(self, name: str) -> None:
        """Make an empty file in the bucket: what matters is that it is there."""
        with self._going_on():
            if self._bucket is not None:
                self._bucket.write(f"{self._prefix}/{name}", b"")

    def pull(self, names: Iterable[str], *, if_newer: bool = False) -> None:
        """Bring the files that the bucket has; the others go from the folder.

        Args:
            names: of the files.
            if_newer: leave a file alone that was written after the bucket's.

        Raises:
            OSError: the bucket does not answer.
        """
        if self._bucket is None:
            return
        for name in names:
            if if_newer and self._is_newer(name):
                continue
            part = self._run_dir / f".{name}.{secrets.token_hex(4)}.part"  # driver and worker may share a node
            try:
                self._bucket.download(f"{self._prefix}/{name}", part)
                part.replace(self._run_dir / name)
            except FileNotFoundError:
                part.unlink(missing_ok=True)
                (self._run_dir / name).unlink(missing_ok=True)

    def _is_newer(self, name: str) -> bool:
        assert self._bucket is not None
        try:
            here = (self._run_dir / name).stat().st_mtime
        except OSError:
            return False
        return here >= (self._bucket.modified(f"{self._prefix}/{name}") or 0.0)

    def try_pull(self, names: Iterable[str], *, if_newer: bool = False) -> None:
        """Bring files, unless the bucket does not answer now."""
        with self._going_on():
            self.pull(names, if_newer=if_newer)

    def clear(self, names: Iterable[str]) -> None:
        """Delete files in the bucket."""
        for name in names:
            if self._bucket is not None:
                self._bucket.delete(f"{self._prefix}/{name}")
            self._pushed.pop(name, None)

    @contextlib.contextmanager
    def pushing(self, names: Iterable[str]) -> Iterator[None]:
        """Push files every five seconds while open, and once more at the end."""
        with self._every(lambda: self.push(names)):
            yield
        self.push(names)

    @contextlib.contextmanager
    def pulling(self, names: Iterable[str]) -> Iterator[None]:
        """Pull files every five seconds while open."""
        with self._every(lambda: self.try_pull(names)):
            yield

    @contextlib.contextmanager
    def _every(self, call: Callable[[], None]) -> Iterator[None]:
        ended = threading.Event()

        def run() -> None:
            while not ended.wait(_EVERY_S):
                call()

        thread = threading.Thread(target=run, daemon=True, name="mirror")
        if self._bucket is not None:
            thread.start()
        try:
            yield
        finally:
            ended.set()
            if thread.is_alive():
                thread.join()

    @contextlib.contextmanager
    def _going_on(self) -> Iterator[None]:
        """Say when the bucket stops answering, and when it answers again."""
        try:
            yield
        except OSError as error:
            if not self._is_out:
                logger.warning("%s cannot be reached, files are sent later: %s", self._place, error)
            self._is_out = True
            return
        if self._is_out:
            logger.warning("%s answers again.", self._place)
        self._is_out = False

    @property
    def _place(self) -> str:
        return f"{self._bucket.url if self._bucket else ''}/{self._prefix}"
