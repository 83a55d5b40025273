"""Refusals of a tracking store: one line, in time, without a password."""

import socket
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from rcdist.errors import ConfigError
from rcdist.tracking.connect import check_scheme, check_sqlite, describe, refusing, run_within, sqlite_path


@pytest.mark.parametrize("uri", ["/tmp/mlruns", "mlruns", "file:///tmp/mlruns", "foo://host", "sqlite://"])
def test_what_is_no_database_or_server_is_refused(uri: str) -> None:
    with pytest.raises(ConfigError, match=f'^tracking.uri="{uri}": not a database file.*Use sqlite:///FILE'):
        check_scheme(uri)


@pytest.mark.parametrize("uri", ["sqlite:///a.db", "http://h", "https://h", "postgresql+psycopg2://h/d", "databricks"])
def test_databases_and_servers_pass(uri: str) -> None:
    check_scheme(uri)


@pytest.mark.parametrize("path", ["/tmp/a%20b/mlflow.db", "/tmp/a?b/mlflow.db", "/tmp/100%.db?timeout=3"])
def test_sqlite_files_that_mlflow_would_put_elsewhere_are_refused(path: str) -> None:
    with pytest.raises(ConfigError, match=r"can have no \? or % for MLflow. Choose another folder: storage_path"):
        check_scheme(f"sqlite:///{path}")
    check_scheme("sqlite:////tmp/a#b ü/mlflow.db?timeout=3")


def test_sqlite_path(tmp_path: Path) -> None:
    assert sqlite_path(f"sqlite:///{tmp_path}/a b.db?timeout=3") == tmp_path / "a b.db"
    assert sqlite_path("http://host") is None


def test_check_sqlite_makes_the_file_and_leaves_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    for _ in range(2):
        check_sqlite(path, 1.0)
    assert path.exists()


def test_check_sqlite_sees_a_lock(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    other = sqlite3.connect(path)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        check_sqlite(path, 0.1)
    other.close()


def test_refusal_drops_a_cause_with_a_password() -> None:
    uri = "postgresql://ada:s3cret@host/db"
    with pytest.raises(ConfigError) as caught, refusing(uri):
        raise ValueError(f"first line about {uri}\nsecond line")
    text = str(caught.value)
    assert text.startswith('tracking.uri="postgresql://***@host/db": cannot be used (first line about')
    assert "s3cret" not in text
    assert caught.value.__suppress_context__


def test_describe_finds_the_reason_of_the_operating_system() -> None:
    with pytest.raises(OSError, match="refused") as caught:
        socket.create_connection(("127.0.0.1", 1), timeout=5)
    error = RuntimeError("a long story")
    error.__cause__ = caught.value
    assert describe(error) == "does not answer (Connection refused)"


@pytest.fixture
def never() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def test_run_within(never: threading.Event) -> None:
    run_within(30, lambda: None)
    with pytest.raises(TimeoutError, match=r"no answer within tracking.timeout_s=0.05"):
        run_within(0.05, never.wait)
    with pytest.raises(ZeroDivisionError):
        run_within(30, lambda: 1 // 0)
