"""A run in a bucket has one owner: an object with a heartbeat, refused to others while it beats."""

import json
import logging
import secrets
import threading
import time
from types import TracebackType

from rcdist.bucket import Bucket
from rcdist.errors import ConfigError, HeldError
from rcdist.lease import describe_self, holder_lives, show_holder

logger = logging.getLogger("rcdist")

_BEAT_S = 3.0
_DEAD_AFTER_S = 15.0
"""Seconds without a heartbeat after which the holder is dead, by the clock of who waits."""
_SETTLE_S = 1.0
"""Seconds after which who has taken a lease looks whether it is still his: of two at once the last one has it."""


class BucketLease:
    """Hold a run while open; as `Lease`, without its two guarantees that only a file system gives.

    A bucket cannot create an object only if it is not there in a way that all providers share: of two jobs that start
    within a second one is refused a second later. And a holder on another machine that was killed is waited for, 15 s.

    Args:
        bucket: of the storage.
        prefix: of the run.
        name: of the run, for messages.
    """

    def __init__(self, bucket: Bucket, prefix: str, name: str) -> None:
        self._bucket, self._object, self._name = bucket, f"{prefix}/lease.json", name
        self._token = secrets.token_hex(8)
        self._released = threading.Event()
        self._beat = 0
        self._is_lost = False

    def __enter__(self) -> "BucketLease":
        seen, since = self._bucket.read_json(self._object), time.monotonic()
        if seen and holder_lives(seen):
            self._refuse(seen)
        while seen and holder_lives(seen) is None and time.monotonic() - since < _DEAD_AFTER_S:
            time.sleep(_BEAT_S / 3)
            now = self._bucket.read_json(self._object)
            if now and now != seen:
                self._refuse(now)
            seen = now
        self._write()
        time.sleep(_SETTLE_S)
        now = self._bucket.read_json(self._object)
        if now.get("token") != self._token:
            self._refuse(now)
        threading.Thread(target=self._run, daemon=True, name="lease").start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._released.set()
        if not self._is_lost:
            try:
                self._bucket.delete(self._object)
            except OSError as failure:
                logger.warning("the lease of run %r cannot be given back: %s", self._name, failure)

    @property
    def is_lost(self) -> bool:
        """Return whether another job has taken the run over, because this one stood still."""
        return self._is_lost

    def prove(self) -> None:
        """Raise a ConfigError if the lease is lost."""
        if self._is_lost:
            rule = f"this job did not reach the bucket for {_DEAD_AFTER_S:g} s, and the run was taken over by another"
            raise ConfigError("name", self._name, rule, "Leave the run to that job")

    def _write(self) -> None:
        self._beat += 1
        self._bucket.write(self._object, json.dumps(describe_self() | {"token": self._token, "beat": self._beat}))

    def _run(self) -> None:
        while not self._released.wait(_BEAT_S):
            try:
                found = self._bucket.read_json(self._object)
                self._is_lost = bool(found) and found.get("token") != self._token
                if self._is_lost or self._released.is_set():
                    return
                self._write()
            except OSError:
                continue  # the bucket does not answer now

    def _refuse(self, holder: dict[str, object]) -> None:
        rule = f"the run is held by {show_holder(holder)}"
        raise HeldError("name", self._name, rule, "Stop that job or wait for it, or choose another name")
