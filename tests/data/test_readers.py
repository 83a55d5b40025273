"""Files as people have them: odd columns, odd names, empty ones among good ones; read, or refused in one line."""

import json
import os
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rcdist.config import DataConfig
from rcdist.data.sources import fingerprint, read_documents, resolve_source
from rcdist.errors import DataError


def documents(entries: list[str], **settings: object) -> list[str]:
    return list(read_documents(resolve_source(entries, DataConfig(**settings), is_train=True)))


def write_jsonl(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


ODD_VALUES = [1, 1.5, True, ["a"], {"a": "b"}]


@pytest.mark.parametrize("value", ODD_VALUES, ids=str)
def test_a_column_of_no_text_is_refused_by_name(value: object, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", {"text": "a"}, {"text": value})
    with pytest.raises(DataError, match=r'data\.text_column="text": x\.jsonl holds an? \w+ there at line 2, not text'):
        documents([path])


@pytest.mark.parametrize("value", [*ODD_VALUES, b"bytes", date(2026, 1, 1)], ids=str)
def test_a_parquet_column_of_no_text_is_refused_by_name(value: object, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [value]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r'data\.text_column="text": x\.parquet holds .* there, not text'):
        documents([str(tmp_path / "x.parquet")])


def test_only_the_text_column_matters(tmp_path: Path) -> None:
    rows = [{"text": "a", "x": 1}, {"text": None, "x": "b"}, {"x": []}, {"text": "c", "y": {"z": 1e400}}]
    assert documents([write_jsonl(tmp_path / "x.jsonl", *rows)]) == ["a", "c"]
    dictionary = pa.array(["a", None, "b"]).dictionary_encode()
    for texts in (pa.array(["a", None, "b"]), pa.array(["a", None, "b"], pa.large_string()), dictionary):
        pq.write_table(pa.table({"text": texts, "other": [[1], [2], None]}), tmp_path / "x.parquet")
        assert documents([str(tmp_path / "x.parquet")]) == ["a", "b"]


def test_files_without_rows_are_read_over_unless_all_are(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("")
    (tmp_path / "b.jsonl").write_bytes(b"\xef\xbb\xbf\n\r\n")
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "c.parquet")
    with pytest.raises(DataError, match="0 bytes of text"):
        documents([str(tmp_path)])
    write_jsonl(tmp_path / "d.jsonl", {"text": "row"})
    assert documents([str(tmp_path)]) == ["row"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"[1]", "line 2: a list, not a JSON object"),
        (b'{"text": "\xff"}', "line 2: not UTF-8 at byte 10"),
        (b'{"text"', "line 2: not JSON"),
        (b"[" * 100_000, "line 2: not JSON"),
        (b'{"text": "\\ud800"}', "document 2 has half of a UTF-16 pair"),
        (b'{"text": ' + b"9" * 5000 + b"}", "line 2"),
    ],
    ids=lambda value: str(value)[:16],
)
def test_a_bad_line_is_named(line: bytes, expected: str, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b'{"text": "a"}\n' + line + b"\n")
    with pytest.raises(DataError, match=expected) as caught:
        documents([str(tmp_path / "x.jsonl")])
    assert "\n" not in str(caught.value)


ODD_NAMES = ["a*b", "[ab]", "?", "a::b", "s3:..b", "x%20y", "#1", "a{b,c}d", "new\nline", "caf\udce9", " "]


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".parquet"])
@pytest.mark.parametrize("name", ODD_NAMES, ids=ascii)
def test_a_path_that_exists_is_itself(name: str, suffix: str, tmp_path: Path) -> None:
    path, decoy = tmp_path / f"{name}{suffix}", tmp_path / f"aXb{suffix}"
    for file, text in ((path, "wanted"), (decoy, "not this")):
        if suffix == ".txt":
            file.write_text(text)
        elif suffix == ".jsonl":
            write_jsonl(file, {"text": text})
        else:
            pq.write_table(pa.table({"text": [text]}), pa.OSFile(os.fsencode(file), "wb"))
    if "\udce9" in name:  # not in a setting, but in a folder
        decoy.unlink()
        path = tmp_path
    assert documents([str(path)]) == ["wanted"]


def test_what_is_hidden_in_a_folder_is_passed_over(tmp_path: Path) -> None:
    for name in ("a.txt", "._a.txt", ".ipynb_checkpoints/a.txt", "x.txt/b.txt", "x.txt/.c/d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert documents([str(tmp_path)]) == ["a.txt", "x.txt/b.txt"]


@pytest.mark.parametrize("is_folder", [False, True])
def test_links_to_nothing_and_pipes_are_refused(is_folder: bool, tmp_path: Path) -> None:
    link, pipe = tmp_path / "a" / "l.txt", tmp_path / "b" / "p.txt"
    for path in (link, pipe):
        path.parent.mkdir()
    link.symlink_to(tmp_path / "nowhere")
    os.mkfifo(pipe)
    with pytest.raises(DataError, match="a link that leads to no file"):
        documents([str(link.parent if is_folder else link)])
    with pytest.raises(DataError, match="no regular file"):
        documents([str(pipe.parent if is_folder else pipe)])


def test_the_same_bytes_read_in_another_way_are_another_corpus(tmp_path: Path) -> None:
    for name in ("a.txt", "a.jsonl"):
        write_jsonl(tmp_path / name, {"text": "row", "other": "text"})
    marks = {
        fingerprint(resolve_source([str(tmp_path / name)], DataConfig(text_column=column), is_train=True))
        for name in ("a.txt", "a.jsonl")
        for column in ("text", "other")
    }
    assert len(marks) == 4
