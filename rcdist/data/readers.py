"""Read the text of one local file, and only the columns that are asked for; the path is taken as it is."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from rcdist.errors import DataError

Row = tuple[str, Any]
"""The text of a row and the work that it belongs to; the work is None where no column names it."""

_BOM = b"\xef\xbb\xbf"
_ROWS_AT_ONCE = 1024


def read_text(path: Path, field: str) -> str:
    """Return the text of a UTF-8 file, as it is: also its line ends and blanks.

    Raises:
        DataError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        rule = f"not UTF-8 at byte {error.start} ({error.reason})"
        raise DataError(field, str(path), rule, "Convert it: iconv -t UTF-8") from error
    except OSError as error:
        raise DataError(field, str(path), f"cannot be read ({error.strerror})", "Check that file") from error


def read_jsonl(path: Path, field: str, text_column: str, document_column: str | None) -> Iterator[Row]:
    """Yield the rows of a file with one JSON object per line.

    Null, and a row without the column, is a row without text: other columns may be anything in any row.

    Raises:
        DataError: names the line that is no object or whose text is none; or the columns, if none is the one wanted.
    """

    def refuse(number: int, rule: str) -> NoReturn:
        raise DataError(field, str(path), f"line {number}: {rule}", "Correct that line")

    wanted = {"data.text_column": text_column}
    if document_column is not None:
        wanted["data.document_column"] = document_column
    seen: dict[str, None] = {}
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                line = line.removeprefix(_BOM) if number == 1 else line
                if not line.strip():
                    continue
                try:
                    row = json.loads(line.decode("utf-8"))
                except UnicodeDecodeError as error:
                    refuse(number, f"not UTF-8 at byte {error.start} ({error.reason})")
                except (ValueError, RecursionError) as error:
                    refuse(number, f"not JSON ({error})")
                if not isinstance(row, dict):
                    refuse(number, f"{_json_type(row)}, not a JSON object")
                text = row.get(text_column)
                if not isinstance(text, str | None):
                    rule = f"{path.name} holds {_json_type(text)} there at line {number}, not text"
                    raise DataError("data.text_column", text_column, rule, "Name a column of text")
                seen |= dict.fromkeys(row)
                yield text or "", None if document_column is None else row.get(document_column)
    except OSError as error:
        raise DataError(field, str(path), f"cannot be read ({error.strerror})", "Check that file") from error
    for setting, column in wanted.items():
        if seen and column not in seen:
            raise missing_column(setting, column, str(path), list(seen))


def read_parquet(path: Path, field: str, text_column: str, document_column: str | None) -> Iterator[Row]:
    """Yield the rows of a Parquet file; of its columns only those wanted are read.

    Raises:
        DataError: it is damaged, a column is missing, stands twice or holds no text.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    def holds_text(kind: Any) -> bool:
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        tests: list[Callable[[Any], bool]] = [
            pa.types.is_string,
            pa.types.is_large_string,
            pa.types.is_string_view,
            pa.types.is_null,
        ]
        return any(test(kind) for test in tests)

    wanted = [("data.text_column", text_column)]
    if document_column is not None:
        wanted.append(("data.document_column", document_column))
    try:
        with path.open("rb") as file:  # a file, because a name could pass for a pattern or an address
            table = pq.ParquetFile(file)
            schema = table.schema_arrow
            for setting, column in wanted:
                if column not in schema.names:
                    raise missing_column(setting, column, str(path), schema.names)
                if schema.names.count(column) > 1:
                    rule = f"{path.name} has {schema.names.count(column)} such columns"
                    raise DataError(setting, column, rule, "Keep one")
            kind = schema.field(text_column).type
            if not holds_text(kind):
                rule = f"{path.name} holds {kind} there, not text"
                raise DataError("data.text_column", text_column, rule, "Name a column of text")
            columns = [column for _, column in wanted]
            for batch in table.iter_batches(_ROWS_AT_ONCE, columns=columns):
                texts = batch.column(text_column).to_pylist()
                works = [None] * len(texts) if document_column is None else batch.column(document_column).to_pylist()
                yield from ((text or "", work) for text, work in zip(texts, works, strict=True))
    except (pa.ArrowException, OSError, UnicodeDecodeError, ValueError, KeyError) as error:
        raise unreadable(field, str(path), error) from error


def missing_column(setting: str, column: str, name: str, columns: list[str]) -> DataError:
    """Build the error for a column that rows do not have."""
    shown = " ".join(columns[:20]) + (" ..." if len(columns) > 20 else "")
    return DataError(setting, column, f"{name} has columns {shown}", f"Set {setting} to one of them")


def unreadable(field: str, name: str, error: Exception, remedy: str = "Check that file") -> DataError:
    """Build the error for what a library says of a file or a set."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return DataError(field, name, f"cannot be read ({reason[:300]})", remedy)


def _json_type(value: Any) -> str:
    names = {bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object", str: "a string"}
    return names.get(type(value), "null")
