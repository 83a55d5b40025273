"""Print what the library says by its logger, for commands."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rcdist.storage import say

logger = logging.getLogger("rcdist")


@contextmanager
def printed_log() -> Iterator[None]:
    """Print what the logger `rcdist` says while open: information on stdout, warnings on stderr."""
    handler, level = _Printer(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = True


class _Printer(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        say(self.format(record), stream)
