"""Text -> shards -> text is the identity, and bytes counted are bytes of the text, for every kind of tokenizer."""

import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rcdist.data.prepare import _encode_chunk, split_document
from rcdist.data.shards import CorpusInfo, ShardWriter, TokenCorpus
from rcdist.data.tokenizer import Tokenizer, read_tokenizer
from rcdist.errors import DataError
from tests.data.kinds import SPECIAL, TEXT, all_kinds, byte_level, own_bpe, words

with tempfile.TemporaryDirectory() as _folder:
    KINDS = all_kinds(Path(_folder))
EXACT = ["bytes", "bpe", "byte-level", "byte-fallback"]
PIECES = [*SPECIAL, " ", "  ", "\n\n", "\t", "E", "É", "É", "ﬁ", "truth", "a", "th", "\0", "\u200b", "\U0001f600", "İ"]
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=5), min_size=1, max_size=12).map("".join).filter(bool)


def write_and_read(tokenizer: Tokenizer, documents: list[str], shard_tokens: int) -> tuple[CorpusInfo, list[str]]:
    """Return what is said of documents in shards, and the documents that come back."""
    with tempfile.TemporaryDirectory() as name:
        sizes = {"vocab_size": tokenizer.vocab_size, "shard_tokens": shard_tokens}
        writer = ShardWriter(Path(name), digest="", tokenizer_digest="", **sizes)
        _encode_chunk([(True, text) for text in documents], tokenizer, writer)
        writer.finish()
        corpus = TokenCorpus(name, tokenizer.vocab_size)
        ids = corpus.tokens(0, corpus.num_tokens)
        starts = np.flatnonzero(ids == tokenizer.eod_id).tolist()
        parts = [ids[a:b].tolist() for a, b in zip(starts, [*starts[1:], ids.size], strict=True)]
        return corpus.info, [tokenizer.decode(part) for part in parts]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60)
@given(documents=st.lists(TEXTS, min_size=1, max_size=4), shard_tokens=st.integers(1, 40))
def test_text_comes_back_from_shards_and_all_its_bytes_are_accounted_for(
    kind: str, documents: list[str], shard_tokens: int
) -> None:
    info, back = write_and_read(KINDS[kind], documents, shard_tokens)
    assert info.num_bytes + info.num_lost == sum(len(text.encode()) for text in documents)
    assert len(back) == info.num_documents == len(documents)  # no text is a document's boundary
    if kind in EXACT:
        assert back == documents
        assert info.num_lost == 0
    elif info.num_lost == 0:
        assert back == documents
    assert info.max_id < KINDS[kind].vocab_size


@pytest.mark.parametrize("kind", ["words", "characters"])
def test_what_a_tokenizer_does_not_know_is_lost_and_not_counted(kind: str) -> None:
    info, _ = write_and_read(KINDS[kind], ["a truth É東", "a"], 100)
    known = {"words": 1 + 1 + 5 + 1 + 1, "characters": 1 + 1 + 5 + 1 + 1}[kind]
    assert (info.num_bytes, info.num_lost) == (known, 5)
    (nothing,) = KINDS[kind].encode_counted(["東京"])
    assert (nothing.num_bytes, nothing.num_lost) == (0, 6)


def test_a_word_that_is_the_boundary_too_is_lost_and_ends_no_document() -> None:
    info, back = write_and_read(KINDS["words"], ["a </s> a"], 100)
    assert (info.num_documents, info.num_lost, back) == (1, 4, ["a  a"])


def test_what_changes_a_text_is_switched_off_and_named(tmp_path: Path) -> None:
    changes = read_tokenizer(byte_level(tmp_path)).changes
    for expected in ("truncation", "padding", "NFKC", "Lowercase", "Strip", "Replace", "dropout", "special tokens"):
        assert any(expected in change for change in changes), expected
    assert len(changes) == 10


def test_a_file_of_ours_is_not_changed(tmp_path: Path) -> None:
    own_bpe().save(tmp_path)
    read = read_tokenizer(tmp_path / "tokenizer.json")
    assert read.changes == () and read.digest == own_bpe().digest and read.is_exact


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_in_another_process_gives_the_same_ids(kind: str) -> None:
    text = TEXT + "".join(SPECIAL)
    assert pickle.loads(pickle.dumps(KINDS[kind])).encode_counted([text]) == KINDS[kind].encode_counted([text])


def test_the_number_of_ids_is_the_highest_id_and_one(tmp_path: Path) -> None:
    tokenizer = read_tokenizer(words(tmp_path))
    assert tokenizer.vocab_size == 301 and tokenizer.known_ids == {0, 2, 7, 41, 300}


def test_an_id_that_would_wrap_or_leave_the_model_is_not_written(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, digest="", tokenizer_digest="", vocab_size=2**16, shard_tokens=100)
    writer.add(np.array([2**16 - 1], np.uint32), 1)
    with pytest.raises(DataError, match=r"model\.vocab_size=65536: the tokens in .* go up to 65536"):
        writer.add(np.array([2**16], np.uint32), 1)


def test_shards_with_ids_beyond_a_model_are_not_opened(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, digest="", tokenizer_digest="", vocab_size=1000, shard_tokens=100)
    writer.start_document(0)
    writer.add(np.array([999], np.uint32), 1)
    writer.finish()
    assert TokenCorpus(tmp_path, 1000).info.max_id == 999
    with pytest.raises(DataError, match=r"model\.vocab_size=999: .* go up to 999\. Use model\.vocab_size=1000"):
        TokenCorpus(tmp_path, 999)


@given(pieces=st.lists(st.sampled_from([*PIECES, " and", " x", "'s", "12", "\n", "\x1c", "\u3000"]), max_size=40))
def test_a_document_is_cut_where_the_ids_stay_the_same(pieces: list[str]) -> None:
    tokenizer, whole = KINDS["bpe"], "".join(pieces)
    parts = split_document(whole, piece_chars=1)
    assert "".join(parts) == whole
    joined = [i for ids in tokenizer.encode_batch(parts) for i in ids]
    assert joined == tokenizer.encode_batch([whole])[0]


def test_a_long_document_is_cut_and_one_without_blanks_is_not() -> None:
    assert len(split_document("word after word\n" * 50_000)) == 13
    assert len(split_document("ACGT" * 100_000)) == 1


def test_a_line_without_blanks_becomes_short_pre_tokens() -> None:
    backend = own_bpe()._backend
    assert backend is not None
    longest = max(end - start for _, (start, end) in backend.pre_tokenizer.pre_tokenize_str("ACGT" * 10_000))
    assert longest == 256
