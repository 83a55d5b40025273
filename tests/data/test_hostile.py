"""Hostile files x settings, prepared and evaluated: right, or one line; from the cache as fresh."""

# By default each file goes with every tokenizer, asked in turn in every way: 708 combinations. The exhaustive suite
# tries all 2,832.

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from rcdist.config import JobConfig
from rcdist.data.prepare import PreparedData, prepare_corpora
from rcdist.data.sources import read_documents, resolve_source
from rcdist.data.tokenizer import load_tokenizer
from rcdist.errors import EXIT_BAD_CONFIG, RcdistError
from rcdist.inference.load import LoadedModel
from rcdist.inference.score import score_text
from rcdist.model.lm import LanguageModel
from rcdist.model.reservoir import build_bank
from rcdist.preflight import check_config
from tests.data.hostile import GOOD, HOSTILE
from tests.data.kinds import byte_fallback, byte_level, characters, words

TOKENIZERS = ("bytes", "bpe", "byte-level", "byte-fallback", "words", "characters")
ASKED: tuple[dict[str, Any], ...] = (
    {},
    {"text_column": "other"},
    {"document_column": "work"},
    {"max_documents": 1, "streaming": True},
)
MODEL = {"vocab_size": 512, "width": 8, "num_layers": 1}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("tokenizers")
    files = [make(folder) for make in (byte_level, byte_fallback, words, characters)]
    settings: dict[str, dict[str, Any]] = {"bytes": {"kind": "bytes"}, "bpe": {"kind": "bpe", "vocab_size": 300}}
    return settings | {path.stem: {"kind": "file", "path": str(path)} for path in files}


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    architecture = JobConfig(model=MODEL).architecture
    return LanguageModel(architecture, build_bank(architecture), seed=0)


def prepare(config: JobConfig) -> tuple[PreparedData | None, RcdistError | None]:
    """Return the corpus, every byte of it counted; or what is wrong."""
    try:
        check_config(config)
        prepared = prepare_corpora(config, report=lambda _: None)
    except RcdistError as error:
        return None, error
    texts = read_documents(resolve_source(config.data.train, config.data, is_train=True))
    assert prepared.train.num_bytes == sum(len(text.encode()) for text in texts)
    return prepared, None


def evaluate(config: JobConfig, prepared: PreparedData, model: LanguageModel) -> None:
    """Measure a model, which has learnt nothing, on the same text."""
    tokenizer = load_tokenizer(Path(prepared.tokenizer_dir))
    loaded = LoadedModel(model, tokenizer, config, 0, config.storage)
    scores = score_text(loaded, config.data.train, text_column=config.data.text_column, max_tokens=50)
    assert 0 < scores["eval/loss_nats"] < float("inf") and 0 < scores["tokens"] <= 50


def try_combinations(
    name: str, tokenizers: dict[str, dict[str, Any]], model: LanguageModel, folder: Path, is_whole: bool
) -> None:
    path, good = str(HOSTILE[name](folder)), folder / "good.jsonl"
    good.write_text(json.dumps({"text": GOOD, "other": "b", "work": "c"}))
    first = list(HOSTILE).index(name)
    for i, tokenizer in enumerate(TOKENIZERS):
        ways = ASKED if is_whole else [ASKED[(first + i) % len(ASKED)]]
        for asked, entries in itertools.product(ways, ([path], [str(good), path])):
            data = {"train": entries, "validation": entries, "seq_len": 8, **asked}
            config = JobConfig(
                storage_path=str(folder / "storage"),
                data=data,
                tokenizer=tokenizers[tokenizer],
                model=MODEL,
                train={"global_batch_tokens": 64},
            )
            prepared, error = prepare(config)
            again, same_error = prepare(config)
            assert (again, str(same_error)) == (prepared, str(error)), "from the cache it is another"
            if prepared:
                evaluate(config, prepared, model)
            if error:
                assert error.exit_code == EXIT_BAD_CONFIG
                assert "\n" not in str(error) and str(error).endswith(".")
    assert not [path for path in (folder / "storage" / "datasets").glob("*") if "." in path.name], "half of something"


@pytest.mark.parametrize("name", HOSTILE)
def test_it_is_right_or_one_line(
    name: str, tokenizers: dict[str, dict[str, Any]], model: LanguageModel, tmp_path: Path
) -> None:
    assert len(HOSTILE) * len(TOKENIZERS) * 2 >= 500
    try_combinations(name, tokenizers, model, tmp_path, is_whole=False)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", HOSTILE)
def test_it_is_right_or_one_line_in_every_combination(
    name: str, tokenizers: dict[str, dict[str, Any]], model: LanguageModel, tmp_path: Path
) -> None:
    try_combinations(name, tokenizers, model, tmp_path, is_whole=True)
