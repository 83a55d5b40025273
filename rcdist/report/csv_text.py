"""Rows as the text of a CSV file."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any


def format_csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    """Return CSV with a header; what a row lacks is empty.

    Args:
        rows: values by column.
        columns: in their order; None: those of the rows, in the order in which they come first.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row)) if columns is None else columns
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
