"""Tokenising, here and with real Ray Data: exact text back, cached by content, complete or not there."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rcdist.config import JobConfig
from rcdist.data import prepare
from rcdist.data.prepare import PreparedData, prepare_corpora
from rcdist.data.shards import TokenCorpus
from rcdist.data.tokenizer import load_tokenizer
from rcdist.data.yardsticks import measure_yardsticks
from rcdist.errors import DataError

WORDS = ["red", "green", "blue", "yellow", "cyan"]


@pytest.fixture
def config(tmp_path: Path) -> JobConfig:
    generator = np.random.default_rng(0)
    folder = tmp_path / "text"
    folder.mkdir()
    for i in range(3):
        words = generator.choice(WORDS, 30_000)
        paragraphs = [" ".join(words[j : j + 50]) for j in range(0, words.size, 50)]
        (folder / f"{i}.txt").write_text("\n\n".join(paragraphs))
    return JobConfig(
        storage_path=str(tmp_path / "store"),
        model={"vocab_size": 300},
        data={"train": [str(folder / "0.txt"), str(folder / "1.txt")], "validation": [str(folder / "2.txt")]},
    )


def read_text(config: JobConfig, path: str, tokenizer_dir: str) -> list[str]:
    corpus = TokenCorpus(path, 300)
    tokenizer = load_tokenizer(Path(tokenizer_dir))
    ids = corpus.tokens(0, corpus.num_tokens)
    starts = np.flatnonzero(ids == tokenizer.eod_id).tolist()
    return [tokenizer.decode(ids[a:b].tolist()) for a, b in zip(starts, [*starts[1:], ids.size], strict=True)]


def test_the_text_comes_back_and_the_second_time_nothing_is_made(config: JobConfig) -> None:
    check_that_the_text_comes_back(config)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cpu")
def test_a_large_corpus_is_encoded_by_ray_data_into_the_same_shards(
    config: JobConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = prepare_corpora(config).train
    monkeypatch.setattr(prepare, "_LOCAL_CHARS", 0)
    again = config.model_copy(update={"storage_path": str(tmp_path / "ray")})
    there = check_that_the_text_comes_back(again).train
    assert here.digest == there.digest and here.path != there.path
    for path in Path(here.path).iterdir():
        assert path.read_bytes() == (Path(there.path) / path.name).read_bytes()


def check_that_the_text_comes_back(config: JobConfig) -> PreparedData:
    lines: list[str] = []
    prepared = prepare_corpora(config, report=lines.append)
    made_lines = [line for line in lines if "tokenised" in line]
    assert len(made_lines) == 2
    originals = [Path(name).read_text() for name in config.data.train]
    assert read_text(config, prepared.train.path, prepared.tokenizer_dir) == originals
    assert prepared.train.num_bytes == sum(len(text.encode()) for text in originals)
    assert prepared.train.num_documents == 2
    made = sorted(str(path) for path in config.dataset_dir.rglob("*"))
    assert prepare_corpora(config, report=lines.append) == prepared
    assert [line for line in lines if "tokenised" in line] == made_lines
    assert sorted(str(path) for path in config.dataset_dir.rglob("*")) == made
    assert not [name for name in made if "/." in name]
    return prepared


def test_changed_text_is_another_corpus(config: JobConfig) -> None:
    before = prepare_corpora(config)
    path = Path(config.data.train[0])
    path.write_text(path.read_text() + " more")
    after = prepare_corpora(config)
    assert after.train.digest != before.train.digest
    assert after.train.path != before.train.path


def test_shards_of_an_older_format_are_made_again(config: JobConfig) -> None:
    made = prepare_corpora(config).train
    index, shards = Path(made.path) / "index.json", sorted(Path(made.path).glob("shard-*"))
    before = [path.read_bytes() for path in shards]
    index.write_text(
        json.dumps({name: value for name, value in json.loads(index.read_text()).items() if name != "format"})
    )
    shards[0].rename(Path(made.path) / "shard-00000.tokens")
    assert prepare_corpora(config).train == made  # the digest too: a run that was trained on them goes on
    assert [path.read_bytes() for path in shards] == before and not list(Path(made.path).glob("*.tokens"))


def test_a_failure_leaves_no_corpus_behind(config: JobConfig, tmp_path: Path) -> None:
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"fine until \xff here")
    config.data.validation = [str(bad)]
    with pytest.raises(DataError, match="not UTF-8 at byte 11"):
        prepare_corpora(config)
    assert len([p for p in config.dataset_dir.iterdir() if p.name.startswith("tokens-")]) == 1
    assert not [p for p in config.dataset_dir.iterdir() if p.name.startswith(".")]


def test_a_corpus_shorter_than_a_window_is_refused(config: JobConfig, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("red green")
    config.data.validation = [str(short)]
    with pytest.raises(DataError, match=r"a window needs data\.seq_len \+ 1 = 257"):
        prepare_corpora(config)


def test_yardsticks_equal_the_definition_written_out(config: JobConfig) -> None:
    prepared = prepare_corpora(config)
    train, validation = (TokenCorpus(info.path, 300) for info in (prepared.train, prepared.validation))
    text = Path(config.data.validation[0]).read_text()
    measured = measure_yardsticks(train, validation, [text], 300)
    a, b = train.tokens(0, train.num_tokens).tolist(), validation.tokens(0, validation.num_tokens).tolist()
    unigrams: dict[Any, int] = {}
    bigrams: dict[Any, int] = {}
    befores: dict[Any, int] = {}
    for token in a:
        unigrams[token] = unigrams.get(token, 0) + 1
    for pair in itertools.pairwise(a):
        bigrams[pair] = bigrams.get(pair, 0) + 1
        befores[pair[0]] = befores.get(pair[0], 0) + 1
    bits_unigram = sum(-np.log2((unigrams.get(t, 0) + 1) / (len(a) + 300)) for t in b[1:])
    bits_bigram = sum(-np.log2((bigrams.get(p, 0) + 1) / (befores.get(p[0], 0) + 300)) for p in itertools.pairwise(b))
    size = len(text.encode())
    assert measured["yardstick/unigram_bits_per_byte"] == pytest.approx(bits_unigram / size)
    assert measured["yardstick/bigram_bits_per_byte"] == pytest.approx(bits_bigram / size)
    assert 0 < measured["yardstick/gzip_bits_per_byte"] < 8
