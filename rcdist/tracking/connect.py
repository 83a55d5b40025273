"""Reach a tracking store within a time, and say in one line without passwords why it cannot be used."""

import contextlib
import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock

from rcdist.errors import ConfigError
from rcdist.tracking.provenance import redact

_SQLITE = "sqlite:///"
_SCHEMES = ("sqlite", "http", "https", "postgresql", "mysql", "mssql", "databricks")


def check_scheme(uri: str) -> None:
    """Refuse what is neither a database nor a server.

    Raises:
        ConfigError: names the forms that can be used.
    """
    if uri.split(":")[0].split("+")[0] not in _SCHEMES or uri == "sqlite://":
        raise ConfigError(
            "tracking.uri",
            redact(uri),
            "not a database file, a database or a server; MLflow no longer writes into folders",
            "Use sqlite:///FILE, http(s)://HOST:PORT or a database URI",
        )
    # SQLAlchemy takes what follows a ? for options and Alembic a % for a variable, escaped or not.
    file, _, options = uri.removeprefix(_SQLITE).partition("?")
    if uri.startswith(_SQLITE) and ("%" in file or "/" in options):
        raise ConfigError(
            "tracking.uri",
            uri,
            "the path of an SQLite file can have no ? or % for MLflow",
            "Choose another folder: storage_path, unless tracking.uri is set",
        )


def sqlite_path(uri: str) -> Path | None:
    """Return the file of an SQLite URI, None for another."""
    return Path(uri.removeprefix(_SQLITE).partition("?")[0]).absolute() if uri.startswith(_SQLITE) else None


def check_sqlite(path: Path, timeout_s: float) -> None:
    """Take and release the write lock of a database file, creating it if needed; its folder must exist.

    MLflow itself would try again for a minute on a file that cannot be opened.

    Raises:
        sqlite3.Error: not a database, read-only, or locked for longer than the timeout.
    """
    with contextlib.closing(sqlite3.connect(path, timeout=timeout_s)) as database:
        database.execute("BEGIN IMMEDIATE")
        database.rollback()


@contextlib.contextmanager
def lock_setup(path: Path) -> Iterator[None]:
    """Let one job at a time set up a database file: MLflow's own set-up fails when two start together."""
    with FileLock(path.with_name(f".{path.name}.lock")):
        yield


def run_within(timeout_s: float, call: Callable[[], object]) -> None:
    """Call in a thread and give up after a timeout: name look-ups and database drivers have none.

    Raises:
        TimeoutError: it did not return in time; the thread is left behind.
        Exception: what `call` raised.
    """
    failures: list[Exception] = []

    def run() -> None:
        try:
            call()
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True, name="tracking-check")
    thread.start()
    thread.join(timeout_s)
    if thread.is_alive():
        raise TimeoutError(f"no answer within tracking.timeout_s={timeout_s:g}")
    if failures:
        raise failures[0]


@contextlib.contextmanager
def refusing(uri: str) -> Iterator[None]:
    """Turn what a tracking store raises into a ConfigError; the cause is dropped, it may hold a password."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        remedy = "Start the server, correct the URI, or leave tracking.uri out for an SQLite file"
        raise ConfigError("tracking.uri", redact(uri), describe(error), remedy) from None


def describe(error: BaseException) -> str:
    """Describe in one line, without passwords, what went wrong, by the operating system's reason if there is one."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, TimeoutError):
            return f"does not answer ({cause})"
        if isinstance(cause, OSError) and cause.strerror:
            is_network = isinstance(cause, ConnectionError | socket.gaierror)
            return f"{'does not answer' if is_network else 'cannot be used'} ({cause.strerror})"
        cause = cause.__cause__ or cause.__context__
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"cannot be used ({redact(lines[0])[:200]})"
