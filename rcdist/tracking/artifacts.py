"""Where artifacts of runs lie that MLflow keeps in an SQLite file: beside it, also after the folder has moved."""

import contextlib
import sqlite3
from pathlib import Path

_FOLDER = "mlartifacts"
_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
    ("model_versions", "source"),
)
"""Where MLflow keeps absolute addresses of artifacts."""


def artifact_location(database: Path) -> str:
    """Return the address of the folder of artifacts of an SQLite file."""
    return (database.parent / _FOLDER).as_uri()


def follow_move(database: Path, experiment: str, tag: str) -> str | None:
    """Let the artifacts of an experiment, and all that lay beside them, be where the SQLite file is now.

    MLflow keeps absolute addresses: after the folder was moved, or mounted elsewhere, it would write to the old one.

    Args:
        database: SQLite file that MLflow has set up; hold its `lock_setup`.
        experiment: its name.
        tag: that an experiment of ours has; the place of another's artifacts was its owner's choice.

    Returns:
        The old address, None if nothing had moved.
    """
    new = artifact_location(database)
    with contextlib.closing(sqlite3.connect(database, timeout=10.0)) as connection, connection:
        row = connection.execute(
            "SELECT artifact_location FROM experiments AS e JOIN experiment_tags AS t USING (experiment_id) "
            "WHERE e.name = ? AND t.key = ?",
            (experiment, tag),
        ).fetchone()
        old = row[0] if row else new
        if old == new or not old.startswith("file:") or not old.endswith(f"/{_FOLDER}"):
            return None
        for table, column in _COLUMNS:
            connection.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE {column} = ? OR {column} GLOB ? || '/*'",
                (new, len(old) + 1, old, _literal(old)),
            )
    return str(old)


def _literal(text: str) -> str:
    """Escape what GLOB takes for a pattern."""
    return "".join(f"[{char}]" if char in "*?[" else char for char in text)
