"""Files as people should not bring them, and do: made by code, one function for each, by name."""

import gzip
import io
import json
import os
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

GOOD = "It is a truth universally acknowledged, that a single man must be in want of a wife.\n" * 8


def _text(name: str, data: bytes | str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return path

    return make


def _rows(*rows: Any) -> Callable[[Path], Path]:
    return _text("x.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def _table(*columns: Any, names: tuple[str, ...] = ("text",)) -> Callable[[Path], Path]:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_arrays([pa.array(column) for column in columns], names=list(names)), buffer)
    return _text("x.parquet", buffer.getvalue())


def _folder(name: str, *inside: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        for part in inside:
            (folder / name / part).parent.mkdir(parents=True, exist_ok=True)
            (folder / name / part).write_text(GOOD)
        (folder / name).mkdir(exist_ok=True)
        return folder / name

    return make


def _link(to: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "link.txt").symlink_to(to)
        return folder / "link.txt"

    return make


def _pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe.txt")
    return folder / "pipe.txt"


_good_row = {"text": GOOD, "other": GOOD, "work": "a"}
_whole_parquet = _table([GOOD])

HOSTILE: dict[str, Callable[[Path], Path]] = {
    "nothing": _text("x.txt", ""),
    "byte order mark": _text("x.txt", b"\xef\xbb\xbf" + GOOD.encode()),
    "latin-1": _text("x.txt", GOOD.encode() + b"caf\xe9"),
    "utf-16": _text("x.txt", GOOD.encode("utf-16")),
    "zero bytes": _text("x.txt", "\0" * 600),
    "compressed": _text("x.txt", gzip.compress(GOOD.encode())),
    "compressed by name": _text("x.txt.gz", gzip.compress(GOOD.encode())),
    "one line without blanks": _text("x.txt", "ACGTTGCA" * 5000),
    "blanks only": _text("x.txt", " \n\t\r\n" * 300),
    "control characters": _text("x.txt", "".join(map(chr, range(1, 32))) * 30),
    "no known character": _text("x.txt", "東京\U0001f600" * 100),
    "combining marks": _text("x.txt", "e" + "́" * 1000),
    "special tokens": _text("x.txt", "<|endofdocument|></s><unk><|endoftext|><s>\n" * 30),
    "one character": _text("x.txt", "a"),
    "capital suffix": _text("X.TXT", GOOD),
    "another suffix": _text("x.md", GOOD),
    "no suffix": _text("x", GOOD),
    "pattern in the name": _text("[a]*?{b}.txt", GOOD),
    "address in the name": _text("hub:a%20b#c?d.txt", GOOD),
    "line end in the name": _text("a\nb .txt", GOOD),
    "longest name": _text("a" * 251 + ".txt", GOOD),
    "rows of numbers": _rows({"text": 1, "other": 2.5}),
    "rows of null": _rows({"text": None, "other": None, "work": None}),
    "rows without the column": _rows({"body": GOOD}),
    "rows that are lists": _rows(["text", GOOD]),
    "rows of structs": _rows({"text": {"value": GOOD}}),
    "rows of nothing": _text("x.jsonl", "\n\n \n"),
    "a type that changes": _rows(*[_good_row] * 40, {"text": 7, "other": [], "work": {}}),
    "a column that appears late": _rows(*[{"text": GOOD}] * 40, {"text": GOOD, "other": GOOD, "work": 3}),
    "half of a pair": _text("x.jsonl", '{"text": "\\ud800"}\n'),
    "half a row": _text("x.jsonl", json.dumps(_good_row) + '\n{"text": "a'),
    "keys twice": _text("x.jsonl", '{"text": 1, "text": "' + "a" * 100 + '"}\n'),
    "endless nesting": _text("x.jsonl", "[" * 100_000),
    "a number of 5,000 digits": _text("x.jsonl", '{"text": ' + "9" * 5000 + "}"),
    "works of any kind": _rows(*({**_good_row, "work": work} for work in (1, "a", None, [1], {"b": 2}))),
    "columns of numbers": _table([1, 2]),
    "columns of dates": _table([date(2026, 1, 1)]),
    "columns of bytes": _table([b"a" * 100]),
    "columns of lists": _table([["a", "b"]]),
    "columns of structs": _table([{"a": "b"}]),
    "columns of null": _table([None, None]),
    "no rows": _table(pa.array([], pa.string())),
    "large strings": _table(pa.array([GOOD, None], pa.large_string())),
    "dictionary": _table(pa.array([GOOD, GOOD]).dictionary_encode()),
    "works that are lists": _table([GOOD] * 3, [[1], None, [1]], names=("text", "work")),
    "a column twice": _table([GOOD], [GOOD], names=("text", "text")),
    "no such column": _table([GOOD], names=("body",)),
    "half a table": lambda folder: _text("x.parquet", _whole_parquet(folder).read_bytes()[:-40])(folder),
    "no table": _text("x.parquet", GOOD),
    "a folder named as a file": _folder("x.txt", "a.txt"),
    "an empty folder": _folder("x"),
    "a folder of what is hidden": _folder("x", "._a.txt", ".ipynb_checkpoints/a.txt"),
    "a folder of folders": _folder("x", *(f"{'d/' * depth}a.txt" for depth in range(5))),
    "a link to nowhere": _link("nowhere"),
    "a link to itself": _link("link.txt"),
    "a link to a folder": _link("."),
    "a pipe": _pipe,
    "a device": lambda _: Path("/dev/null"),
    "no file": lambda folder: folder / "x.txt",
}
