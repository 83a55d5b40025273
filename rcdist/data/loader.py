"""Batches of windows in one global order, whatever the number of workers; the state is one integer."""

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from rcdist.data.order import locate
from rcdist.data.shards import TokenCorpus

# Shapes: B windows of one micro-batch, T time.

_AHEAD = 2
"""Batches that are prepared before they are asked for."""


@dataclass(frozen=True)
class MicroBatch:
    """Hold what one forward pass takes.

    Attributes:
        tokens_BT: int64 inputs.
        targets_BT: int64, the token after each input.
        starts_BT: bool, True where a document starts.
        weights_BT: float32, 1, and 0 for padding.
    """

    tokens_BT: Tensor
    targets_BT: Tensor
    starts_BT: Tensor
    weights_BT: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        """Return them in the order in which the model takes them."""
        return self.tokens_BT, self.starts_BT, self.targets_BT, self.weights_BT


@dataclass(frozen=True)
class StepBatch:
    """Hold this rank's share of one global batch.

    Attributes:
        micro_batches: equally many, of equal shape, on every rank.
        samples: (epoch, window) of this rank's real windows, for proofs of the order.
    """

    micro_batches: list[MicroBatch]
    samples: list[tuple[int, int]]


class Loader:
    """Serve the global batches one after the other, each prepared while the one before is trained on.

    The batch at `cursor` is windows cursor .. cursor + windows_per_step - 1 of an endless seeded stream; rank r takes
    every world_size-th of them, and windows of weight zero fill the ranks up to equal shapes.

    Args:
        corpus: training tokens, at least one whole window.
        seq_len: tokens per window T.
        windows_per_step: windows of one global batch.
        micro_batch_size: windows per micro-batch; each rank gets ceil(windows_per_step / world_size) windows in as
            many.
        seed: of the order.
        rank: this worker.
        world_size: number of workers.
        cursor: windows consumed so far by all workers together.
    """

    def __init__(
        self,
        corpus: TokenCorpus,
        *,
        seq_len: int,
        windows_per_step: int,
        micro_batch_size: int,
        seed: int,
        rank: int,
        world_size: int,
        cursor: int = 0,
    ) -> None:
        self._corpus, self._seq_len, self._seed = corpus, seq_len, seed
        self._windows_per_step, self._micro_batch_size = windows_per_step, micro_batch_size
        self._rank, self._world_size = rank, world_size
        per_rank = -(-windows_per_step // world_size)
        self._num_micro_batches = -(-per_rank // micro_batch_size)
        self.cursor = cursor
        self.global_tokens = windows_per_step * seq_len
        self.wait_s = 0.0
        self._executor = ThreadPoolExecutor(1, "loader")
        self._ready: deque[Future[StepBatch]] = deque()
        self._next = cursor
        for _ in range(_AHEAD):
            self._submit()

    def next_step(self) -> StepBatch:
        """Return the next batch and move the cursor past it; `wait_s` then says how long this call waited."""
        began = time.perf_counter()
        batch = self._ready.popleft().result()
        self.wait_s = time.perf_counter() - began
        self._submit()
        self.cursor += self._windows_per_step
        return batch

    def close(self) -> None:
        """End the prefetching thread."""
        self._executor.shutdown(cancel_futures=True)

    def _submit(self) -> None:
        self._ready.append(self._executor.submit(self._build, self._next))
        self._next += self._windows_per_step

    def _build(self, cursor: int) -> StepBatch:
        size = self._corpus.num_windows(self._seq_len)
        positions = range(cursor + self._rank, cursor + self._windows_per_step, self._world_size)
        samples = [locate(position, size, self._seed) for position in positions]
        windows = [window for _, window in samples]
        wanted = self._num_micro_batches * self._micro_batch_size
        rows = _stack(self._corpus, windows + [None] * (wanted - len(windows)), self._seq_len)
        return StepBatch(_split(rows, self._micro_batch_size), samples)


def eval_batches(
    corpus: TokenCorpus, seq_len: int, micro_batch_size: int, rank: int, world_size: int, max_tokens: int | None
) -> Iterator[MicroBatch]:
    """Yield this rank's windows of a held-out corpus in order, equally many batches on every rank.

    The last window is padded with weight zero, so that every target counts exactly once.

    Args:
        corpus: held-out tokens.
        seq_len: tokens per window.
        micro_batch_size: windows per batch.
        rank: this worker.
        world_size: number of workers.
        max_tokens: whole windows from the start holding about this many targets; None: all.
    """
    num_windows = -(-(corpus.num_tokens - 1) // seq_len)
    if max_tokens is not None:
        num_windows = min(num_windows, max(max_tokens // seq_len, 1))
    stride = micro_batch_size * world_size
    for first in range(0, num_windows, stride):
        low = first + rank * micro_batch_size
        windows = [i if i < num_windows else None for i in range(low, low + micro_batch_size)]
        yield _stack(corpus, windows, seq_len)


def _stack(corpus: TokenCorpus, windows: list[int | None], seq_len: int) -> MicroBatch:
    """Read windows into one batch; None is a window of padding, and a short last window is filled up."""
    shape = (len(windows), seq_len)
    batch = MicroBatch(
        torch.zeros(shape, dtype=torch.int64),
        torch.zeros(shape, dtype=torch.int64),
        torch.zeros(shape, dtype=torch.bool),
        torch.zeros(shape, dtype=torch.float32),
    )
    for row, index in enumerate(windows):
        if index is None:
            continue
        ids, starts = corpus.window(index, seq_len)
        length = starts.size
        batch.tokens_BT[row, :length] = torch.from_numpy(ids[:-1])
        batch.targets_BT[row, :length] = torch.from_numpy(ids[1:])
        batch.starts_BT[row, :length] = torch.from_numpy(starts)
        batch.weights_BT[row, :length] = 1.0
    return batch


def _split(rows: MicroBatch, size: int) -> list[MicroBatch]:
    parts = [tensor.split(size) for tensor in (rows.tokens_BT, rows.targets_BT, rows.starts_BT, rows.weights_BT)]
    return [MicroBatch(*tensors) for tensors in zip(*parts, strict=True)]
