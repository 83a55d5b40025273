"""Baselines that a model must beat: gzip, and add-one unigram and bigram models over the same held-out tokens."""

import gzip
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rcdist.config import JobConfig
from rcdist.data.corpora import PreparedData
from rcdist.data.shards import TokenCorpus
from rcdist.data.sources import read_documents, resolve_source
from rcdist.data.tokenizer import load_tokenizer

_MAX_TRAIN_TOKENS = 50_000_000


def yardsticks_of(config: JobConfig, data: PreparedData) -> dict[str, float]:
    """Return what `measure_yardsticks` finds on the corpora of a run."""
    source = resolve_source(config.data.validation, config.data, is_train=False)
    vocab_size = load_tokenizer(Path(data.tokenizer_dir)).vocab_size
    train, validation = (TokenCorpus(info.path, vocab_size) for info in (data.train, data.validation))
    return measure_yardsticks(train, validation, read_documents(source), vocab_size)


def measure_yardsticks(
    train: TokenCorpus, validation: TokenCorpus, validation_text: Iterable[str], vocab_size: int
) -> dict[str, float]:
    """Return bits per byte of gzip -9 and of add-one unigram and bigram models on the held-out text.

    Args:
        train: counted, at most the first 50 million tokens.
        validation: every target token is predicted, as in the model's evaluation.
        validation_text: the same documents as text, compressed as one stream.
        vocab_size: entries of the tokenizer, over which one is added.
    """
    counted = train.tokens(0, min(train.num_tokens, _MAX_TRAIN_TOKENS))
    held_out = validation.tokens(0, validation.num_tokens)
    num_bytes = validation.info.num_bytes
    raw = "".join(validation_text).encode()
    return {
        "yardstick/gzip_bits_per_byte": 8 * len(gzip.compress(raw, 9)) / len(raw),
        "yardstick/unigram_bits_per_byte": _unigram_nats(counted, held_out, vocab_size) / math.log(2) / num_bytes,
        "yardstick/bigram_bits_per_byte": _bigram_nats(counted, held_out, vocab_size) / math.log(2) / num_bytes,
    }


def _unigram_nats(train: NDArray[np.int64], held_out: NDArray[np.int64], vocab_size: int) -> float:
    counts = np.bincount(train, minlength=vocab_size)
    return float(-np.log((counts[held_out[1:]] + 1) / (train.size + vocab_size)).sum())


def _bigram_nats(train: NDArray[np.int64], held_out: NDArray[np.int64], vocab_size: int) -> float:
    before = np.bincount(train[:-1], minlength=vocab_size)
    pairs, pair_counts = np.unique(train[:-1] * vocab_size + train[1:], return_counts=True)
    wanted = held_out[:-1] * vocab_size + held_out[1:]
    place = np.minimum(np.searchsorted(pairs, wanted), pairs.size - 1)
    counts = np.where(pairs[place] == wanted, pair_counts[place], 0)
    return float(-np.log((counts + 1) / (before[held_out[:-1]] + vocab_size)).sum())
