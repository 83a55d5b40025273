"""Send rows from a thread of its own: never blocks the caller, batches, and tries again until the server answers."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice

from rcdist.tracking.tracker import Row

logger = logging.getLogger("rcdist.tracking")

BATCH_ROWS = 1000
"""Rows per write; MLflow takes no more in one batch."""
FIRST_RETRY_S = 1.0
LAST_RETRY_S = 30.0


class Sender:
    """Write rows in the order added, in a background thread.

    A write that fails is tried again with the same rows after 1, 2, 4 ... 30 s, for as long as the process lives:
    `write` must accept rows that it has already stored. The first failure of an outage and its end are logged.

    Args:
        write: stores at most BATCH_ROWS rows or raises.
        describe: turns what `write` raised into one line without secrets.
    """

    def __init__(self, write: Callable[[list[Row]], None], describe: Callable[[Exception], str]) -> None:
        self._write = write
        self._describe = describe
        self._rows: deque[Row] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._hurry = False
        self._thread = threading.Thread(target=self._run, daemon=True, name="tracking")
        self._thread.start()

    @property
    def num_pending(self) -> int:
        """Return the rows not stored yet."""
        return len(self._rows)

    def add(self, rows: Iterable[Row]) -> None:
        """Queue rows; returns at once."""
        with self._changed:
            self._rows.extend(rows)
            self._changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Try at once, wait until every row is stored, and return whether all are."""
        with self._changed:
            self._hurry = True
            self._changed.notify_all()
            return self._changed.wait_for(lambda: not self._rows, timeout_s)

    def close(self) -> None:
        """Let the thread end; rows still queued are not sent."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _run(self) -> None:
        retry_s = FIRST_RETRY_S
        is_out = False
        while True:
            with self._changed:
                if is_out:
                    self._changed.wait_for(lambda: self._closed or self._hurry, retry_s)
                    retry_s = FIRST_RETRY_S if self._hurry else min(2 * retry_s, LAST_RETRY_S)
                    self._hurry = False
                self._changed.wait_for(lambda: self._closed or self._rows)
                if self._closed:
                    return
                batch = list(islice(self._rows, BATCH_ROWS))
            try:
                self._write(batch)
            except Exception as error:  # whatever a server or its client can raise must not stop training
                if not is_out:
                    logger.warning("%s. Training goes on; metrics are kept and sent later.", self._describe(error))
                is_out = True
                continue
            if is_out:
                logger.warning("The tracking server answers again; %d values are sent now.", len(self._rows))
            retry_s, is_out = FIRST_RETRY_S, False
            with self._changed:
                for _ in batch:
                    self._rows.popleft()
                self._changed.notify_all()
