"""Where documents come from, and every way in which that can be wrong."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rcdist.config import DataConfig
from rcdist.data.sources import fingerprint, read_documents, resolve_source
from rcdist.errors import DataError


def documents(entries: list[str], **settings: object) -> list[str]:
    return list(read_documents(resolve_source(entries, DataConfig(**settings), is_train=True)))


def test_the_shipped_corpus_is_five_novels_and_a_held_out_one() -> None:
    novels = documents(["austen"])
    assert len(novels) == 5
    assert sum(len(novel.encode()) for novel in novels) > 3_500_000
    (held_out,) = read_documents(resolve_source(["austen"], DataConfig(), is_train=False))
    assert held_out.startswith("Persuasion")
    assert all("Sir Walter Elliot" not in novel for novel in novels)


def test_files_globs_and_folders(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / f"{name}.txt").write_text(f"text {name}")
    (tmp_path / "c.jsonl").write_text("".join(json.dumps({"text": f"row {i}"}) + "\n" for i in range(3)))
    (tmp_path / "notes.md").write_text("not read")
    assert documents([str(tmp_path / "*.txt")]) == ["text a", "text b"]
    assert documents([str(tmp_path)]) == ["text a", "text b", "row 0", "row 1", "row 2"]
    assert documents([str(tmp_path)], max_documents=3) == ["text a", "text b", "row 0"]


def test_parquet_rows_of_one_work_become_one_document(tmp_path: Path) -> None:
    table = pa.table({"text": ["a1", "a2", "b1", ""], "doc_id": ["a", "a", "b", "c"]})
    pq.write_table(table, tmp_path / "x.parquet")
    path = str(tmp_path / "x.parquet")
    assert documents([path]) == ["a1", "a2", "b1"]
    assert documents([path], document_column="doc_id") == ["a1\n\na2", "b1"]
    with pytest.raises(DataError, match=r'data\.text_column="body": .* has columns text doc_id'):
        documents([path], text_column="body")
    with pytest.raises(DataError, match=r'data\.document_column="work": .* has columns text doc_id'):
        documents([path], document_column="work")


def test_the_fingerprint_follows_content_and_not_name(tmp_path: Path) -> None:
    def mark(name: str, content: str, **settings: object) -> str:
        (tmp_path / name).write_text(content)
        return fingerprint(resolve_source([str(tmp_path / name)], DataConfig(**settings), is_train=True))

    assert mark("a.txt", "same") == mark("b.txt", "same")
    assert mark("a.txt", "same") != mark("a.txt", "other")
    assert mark("a.txt", "same") != mark("a.txt", "same", max_documents=1)


def test_missing_empty_and_unknown_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.train=.*no such file, folder or match"):
        documents([str(tmp_path / "absent.txt")])
    with pytest.raises(DataError, match=r"the folder has no \.txt"):
        documents([str(tmp_path)])
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(DataError, match="the corpus has 0 bytes of text"):
        documents([str(tmp_path / "empty.txt")])
    (tmp_path / "a.pdf").write_text("x")
    with pytest.raises(DataError, match=r"extension '\.pdf' is none of"):
        documents([str(tmp_path / "a.pdf")])


def test_text_that_is_not_utf8_is_named_with_its_byte(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 au lait")
    with pytest.raises(DataError, match=r"latin\.txt.*not UTF-8 at byte 3"):
        documents([str(tmp_path / "latin.txt")])


def test_broken_rows_and_an_unreachable_hub_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text("{not json}\n")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nothing")
    for entry in (str(tmp_path / "bad.jsonl"), str(tmp_path / "bad.parquet"), "hub:owner/absent"):
        with pytest.raises(DataError) as caught:
            documents([entry])
        assert "\n" not in str(caught.value)
        assert str(caught.value).startswith('data.train="')


def test_a_hub_set_stands_alone() -> None:
    with pytest.raises(DataError, match="stands beside other entries"):
        documents(["hub:owner/name", "austen"])
