"""Tokenizers: exact round trips, determinism, and what is refused."""

from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from rcdist.config import TokenizerConfig
from rcdist.data.tokenizer import END_OF_DOCUMENT, Tokenizer, build_tokenizer, load_tokenizer, train_bpe
from rcdist.errors import ConfigError, DataError

TEXT = "It is a truth universally acknowledged,\n\nthat a single man. Zürich 東京 \U0001f600\tend\r\n"
BPE = train_bpe([TEXT * 20], 400, 10**6)


@pytest.mark.parametrize("tokenizer", [BPE, Tokenizer(None)], ids=["bpe", "bytes"])
@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=200))
def test_any_text_survives_the_round_trip(tokenizer: Tokenizer, text: str) -> None:
    (ids,) = tokenizer.encode_batch([text])
    assert tokenizer.decode(ids) == text
    assert all(0 <= i < tokenizer.vocab_size and i != tokenizer.eod_id for i in ids)


def test_training_is_deterministic_and_uses_the_vocabulary() -> None:
    again = train_bpe([TEXT * 20], 400, 10**6)
    assert again.digest == BPE.digest
    assert len(BPE.encode_batch([TEXT])[0]) < len(TEXT.encode()) / 2
    assert train_bpe([TEXT * 20], 300, 10**6).digest != BPE.digest


def test_training_reads_no_more_than_it_may() -> None:
    assert train_bpe(["aaaa" * 100, "bbbb" * 100], 300, 400).digest == train_bpe(["aaaa" * 100], 300, 400).digest


@pytest.mark.parametrize("tokenizer", [BPE, Tokenizer(None)], ids=["bpe", "bytes"])
def test_saving_keeps_ids_and_digest(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "t")
    loaded = load_tokenizer(tmp_path / "t")
    assert loaded.digest == tokenizer.digest
    assert loaded.encode_batch([TEXT]) == tokenizer.encode_batch([TEXT])
    assert (loaded.eod_id, loaded.vocab_size) == (tokenizer.eod_id, tokenizer.vocab_size)


def test_the_boundary_in_the_text_is_not_the_boundary_token() -> None:
    assert Tokenizer(None).encode_batch([END_OF_DOCUMENT])[0] == list(END_OF_DOCUMENT.encode())


def test_a_tokenizer_larger_than_the_model_is_refused_with_both_numbers(tmp_path: Path) -> None:
    BPE.save(tmp_path)
    config = TokenizerConfig(kind="file", path=str(tmp_path / "tokenizer.json"))
    with pytest.raises(ConfigError, match=f"model.vocab_size=100: the tokenizer's highest id is {BPE.vocab_size - 1}"):
        build_tokenizer(config, 100, [])


def test_a_tokenizer_without_boundary_or_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    tokenizers.Tokenizer(tokenizers.models.BPE()).save(str(path))
    with pytest.raises(DataError, match="the tokenizer has none of"):
        build_tokenizer(TokenizerConfig(kind="file", path=str(path)), 100, [])
    path.write_text("{}")
    with pytest.raises(DataError, match=r"not a tokenizer\.json"):
        build_tokenizer(TokenizerConfig(kind="file", path=str(path)), 100, [])
    with pytest.raises(DataError, match="no such file"):
        build_tokenizer(TokenizerConfig(kind="file", path=str(tmp_path / "absent.json")), 100, [])
