"""Measure the held-out loss of the model, sharded over the workers."""

import math

import torch
import torch.distributed as dist

from rcdist.data.loader import eval_batches
from rcdist.data.shards import TokenCorpus
from rcdist.train.engine import Engine


def evaluate(
    engine: Engine, corpus: TokenCorpus, *, seq_len: int, micro_batch_size: int, max_tokens: int | None
) -> dict[str, float]:
    """Return eval/loss_nats, eval/perplexity and eval/bits_per_byte; a collective call, equal on every rank.

    Windows do not overlap and each starts from the zero state, as in training. Bits per byte divides all nats, those
    for document boundaries included, by the bytes of the text; a part of the corpus goes by its bytes per token.

    Args:
        engine: the model under training.
        corpus: held-out tokens.
        seq_len: tokens per window.
        micro_batch_size: windows per forward pass.
        max_tokens: target tokens from the start of the corpus; None: all.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    nats, tokens = torch.zeros((), dtype=torch.float64, device=engine.device), 0.0
    for batch in eval_batches(corpus, seq_len, micro_batch_size, rank, world_size, max_tokens):
        nats += engine.evaluate_sum(batch)  # on the device: reading it would keep a GPU waiting
        tokens += float(batch.weights_BT.double().sum())
    sums = torch.stack([nats, torch.tensor(tokens, dtype=torch.float64, device=engine.device)])
    dist.all_reduce(sums)
    all_nats, all_tokens = sums.tolist()
    return loss_metrics(all_nats / all_tokens, bytes_per_token=corpus.bytes_per_token)


def loss_metrics(loss_nats: float, *, bytes_per_token: float) -> dict[str, float]:
    """Express a mean loss in nats per token as perplexity and bits per byte."""
    return {
        "eval/loss_nats": loss_nats,
        "eval/perplexity": math.exp(min(loss_nats, 700.0)),
        "eval/bits_per_byte": loss_nats / math.log(2) / bytes_per_token,
    }
