"""Measure a loaded model on any text, in one process."""

import torch

from rcdist.data.loader import eval_batches
from rcdist.data.prepare import prepare_text
from rcdist.data.shards import TokenCorpus
from rcdist.inference.load import LoadedModel
from rcdist.ops.replay import Replay
from rcdist.ops.weights import WeightsQuantisedOnce
from rcdist.train.evaluate import loss_metrics

_TOKENS_PER_BATCH = {"cpu": 4096, "cuda": 32768}


@torch.no_grad()
def score_text(
    loaded: LoadedModel, entries: list[str], *, text_column: str, max_tokens: int | None
) -> dict[str, float]:
    """Return eval/loss_nats, eval/perplexity, eval/bits_per_byte and the number of target tokens.

    Windows are as long as in training, do not overlap, and each starts from the zero state.

    Args:
        loaded: model and tokenizer of a checkpoint.
        entries: files, globs, folders, a hub set or the shipped corpus, as in data.validation.
        text_column: column of .jsonl and .parquet files that holds the text.
        max_tokens: target tokens from the start; None: all.

    Raises:
        DataError: the text cannot be read.
    """
    config = loaded.config.model_copy(deep=True)
    config.data.text_column = text_column
    corpus = TokenCorpus(prepare_text(config, entries, loaded.tokenizer).path, config.model.vocab_size)
    seq_len = config.data.seq_len
    device = loaded.model.embedding.weight.device
    nats, tokens, replay = torch.zeros((), dtype=torch.float64, device=device), 0.0, Replay(device)

    def add(*inputs: torch.Tensor) -> None:
        nats.add_(loaded.model(*inputs))

    with WeightsQuantisedOnce():
        for batch in eval_batches(corpus, seq_len, max(_TOKENS_PER_BATCH[device.type] // seq_len, 1), 0, 1, max_tokens):
            replay.run_on("add", add, [tensor.to(device) for tensor in batch.tensors()])
            tokens += float(batch.weights_BT.sum())
    return loss_metrics(float(nats) / tokens, bytes_per_token=corpus.bytes_per_token) | {"tokens": tokens}
