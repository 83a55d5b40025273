"""Shards and batches: every token where it belongs, the same global batch on any number of workers."""

from pathlib import Path

import numpy as np
import pytest
import torch

from rcdist.data.loader import Loader, eval_batches
from rcdist.data.shards import ShardWriter, TokenCorpus, verify_shards
from rcdist.errors import DataError

SEQ_LEN = 8


def make_corpus(folder: Path, num_documents: int = 7, shard_tokens: int = 50, vocab_size: int = 1000) -> TokenCorpus:
    """Write documents of 30 ids after their boundary 0; token i of the corpus has id i where it is no boundary."""
    folder.mkdir()
    writer = ShardWriter(folder, digest="d", tokenizer_digest="t", vocab_size=vocab_size, shard_tokens=shard_tokens)
    place = 0
    for _ in range(num_documents):
        writer.start_document(0)
        writer.add(np.arange(place + 1, place + 21, dtype=np.uint32), num_bytes=40)
        writer.add(np.arange(place + 21, place + 31, dtype=np.uint32), num_bytes=20)
        place += 31
    writer.finish()
    return TokenCorpus(folder, vocab_size)


@pytest.fixture
def corpus(tmp_path: Path) -> TokenCorpus:
    return make_corpus(tmp_path / "c")


@pytest.mark.parametrize("shard_tokens", [1, 7, 31, 50, 1000])
@pytest.mark.parametrize(("vocab_size", "dtype"), [(1000, np.uint16), (70_000, np.uint32)])
def test_tokens_read_back_across_shards(tmp_path: Path, shard_tokens: int, vocab_size: int, dtype: type) -> None:
    corpus = make_corpus(tmp_path / "c", shard_tokens=shard_tokens, vocab_size=vocab_size)
    expected = np.arange(7 * 31)
    expected[::31] = 0
    assert (corpus.tokens(0, 217) == expected).all()
    assert {part.dtype for part in corpus._maps} == {np.dtype(dtype)}
    assert (corpus.info.num_documents, corpus.info.num_bytes, corpus.num_tokens) == (7, 420, 217)
    verify_shards(corpus.info.path)


def test_windows_overlap_by_one_token_and_mark_document_starts(corpus: TokenCorpus) -> None:
    assert corpus.num_windows(SEQ_LEN) == 27
    ids, starts = corpus.window(3, SEQ_LEN)
    assert ids.tolist() == [24, 25, 26, 27, 28, 29, 30, 0, 32]
    assert starts.tolist() == [False] * 7 + [True]
    assert corpus.window(4, SEQ_LEN)[0][0] == 32


def test_damage_is_named_with_both_numbers(corpus: TokenCorpus) -> None:
    shard = Path(corpus.info.path) / "shard-00001.npy"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DataError, match=r"shard-00001\.npy.*digest [0-9a-f]{64}, its index says [0-9a-f]{64}"):
        verify_shards(corpus.info.path)
    shard.write_bytes(data[:-2])
    with pytest.raises(DataError, match=r"shard-00001\.npy.*has 226 bytes, its index says 228"):
        TokenCorpus(corpus.info.path, 1000)


def read_step(corpus: TokenCorpus, world_size: int, cursor: int, micro: int = 2) -> tuple[list, torch.Tensor, set]:
    """Return samples in global order, their rows, and the shapes of all micro-batches of one step."""
    samples: dict[int, tuple[int, int]] = {}
    rows: dict[int, torch.Tensor] = {}
    shapes = set()
    for rank in range(world_size):
        loader = Loader(
            corpus,
            seq_len=SEQ_LEN,
            windows_per_step=6,
            micro_batch_size=micro,
            seed=3,
            rank=rank,
            world_size=world_size,
            cursor=cursor,
        )
        step = loader.next_step()
        assert loader.cursor == cursor + 6
        loader.close()
        shapes.add(tuple(batch.tokens_BT.shape for batch in step.micro_batches))
        tokens = torch.cat([batch.tokens_BT for batch in step.micro_batches])
        weights = torch.cat([batch.weights_BT for batch in step.micro_batches])
        assert weights.sum() == len(step.samples) * SEQ_LEN
        for i, sample in enumerate(step.samples):
            samples[rank + i * world_size] = sample
            rows[rank + i * world_size] = tokens[i]
            assert (weights[i] == 1).all()
    return [samples[i] for i in range(6)], torch.stack([rows[i] for i in range(6)]), shapes


@pytest.mark.parametrize("world_size", [2, 3, 4, 5, 7])
@pytest.mark.parametrize("cursor", [0, 24, 27 * 5 - 2])
def test_every_world_size_reads_the_same_global_batch(corpus: TokenCorpus, world_size: int, cursor: int) -> None:
    samples, rows, _ = read_step(corpus, 1, cursor)
    others, other_rows, shapes = read_step(corpus, world_size, cursor)
    assert others == samples
    assert torch.equal(other_rows, rows)
    assert len(shapes) == 1  # equal shapes on every rank, or collectives would hang


def test_an_epoch_is_every_window_once_and_targets_follow_inputs(corpus: TokenCorpus) -> None:
    loader = Loader(
        corpus, seq_len=SEQ_LEN, windows_per_step=9, micro_batch_size=9, seed=0, rank=0, world_size=1, cursor=0
    )
    seen = []
    for _ in range(3):
        step = loader.next_step()
        seen += step.samples
        (batch,) = step.micro_batches
        assert torch.equal(batch.tokens_BT[:, 1:], batch.targets_BT[:, :-1])
    loader.close()
    assert sorted(seen) == [(0, i) for i in range(27)]


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("micro", [1, 4, 100])
def test_evaluation_counts_every_target_once(corpus: TokenCorpus, world_size: int, micro: int) -> None:
    ranks = [list(eval_batches(corpus, 10, micro, rank, world_size, None)) for rank in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    targets = torch.cat([b.targets_BT[b.weights_BT > 0] for batches in ranks for b in batches])
    assert sorted(targets.tolist()) == sorted(corpus.tokens(1, 217).tolist())
    limited = [list(eval_batches(corpus, 10, micro, rank, world_size, 35)) for rank in range(world_size)]
    assert sum(b.weights_BT.sum() for batches in limited for b in batches) == 30


def test_an_error_while_prefetching_reaches_the_caller(corpus: TokenCorpus) -> None:
    corpus._maps.clear()
    loader = Loader(
        corpus, seq_len=SEQ_LEN, windows_per_step=2, micro_batch_size=2, seed=0, rank=0, world_size=1, cursor=0
    )
    with pytest.raises(IndexError):
        loader.next_step()
    loader.close()
