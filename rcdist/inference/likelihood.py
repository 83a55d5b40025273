"""How likely a model finds whole texts: minimal pairs (BLiMP), and the choices of evaluation tasks."""

# Shapes: B texts, T tokens, V vocabulary.

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.nn import functional as F

from rcdist.errors import DataError
from rcdist.inference.load import LoadedModel
from rcdist.ops.weights import WeightsQuantisedOnce

_LOGITS_AT_ONCE = {"cpu": 2**23, "cuda": 2**28}
_NOT_COUNTED = -100
_PAIR_COLUMNS = ("sentence_good", "sentence_bad", "uid")


@dataclass(frozen=True)
class Likelihood:
    """Say how likely some ids are after others.

    Attributes:
        nats: minus the sum of their log-probabilities.
        is_greedy: each of them is the most likely one at its place.
    """

    nats: float
    is_greedy: bool


Request = tuple[list[int], list[int]]
"""Ids of a context, at least one, and of what follows."""


@torch.no_grad()
def measure_likelihoods(loaded: LoadedModel, requests: Sequence[Request]) -> list[Likelihood]:
    """Return how likely each continuation is after its context.

    Texts of similar length are measured together; a padded place counts nothing, and changes nothing before it. A long
    text is read in parts, so that memory does not grow with it.

    Args:
        loaded: model and tokenizer.
        requests: (context, continuation) in ids; a context has at least one, the document boundary.
    """
    found: list[Likelihood | None] = [None] * len(requests)
    device = loaded.model.embedding.weight.device
    with WeightsQuantisedOnce():
        most = _LOGITS_AT_ONCE[device.type] // loaded.config.model.vocab_size
        for batch in _batches(requests, most):
            if len(batch) == 1:
                found[batch[0]] = _measure_one(loaded, requests[batch[0]], most)
                continue
            longest = max(len(requests[i][0]) + len(requests[i][1]) for i in batch)
            tokens_BT = torch.full((len(batch), longest), loaded.tokenizer.eod_id)
            for row, i in enumerate(batch):
                ids = [*requests[i][0], *requests[i][1]]
                tokens_BT[row, : len(ids)] = torch.tensor(ids)
            tokens_BT = tokens_BT.to(device)
            logits_BTV = loaded.model(tokens_BT[:, :-1])
            nats_BT = (
                F.cross_entropy(logits_BTV.float().transpose(1, 2), tokens_BT[:, 1:], reduction="none").double().cpu()
            )
            right_BT = (logits_BTV.argmax(-1) == tokens_BT[:, 1:]).cpu()
            for row, i in enumerate(batch):
                start, count = len(requests[i][0]) - 1, len(requests[i][1])
                part = slice(start, start + count)
                found[i] = Likelihood(float(nats_BT[row, part].sum()), bool(right_BT[row, part].all()))
    return [likelihood for likelihood in found if likelihood is not None]


def _measure_one(loaded: LoadedModel, request: Request, at_once: int) -> Likelihood:
    """Measure a text in parts of so many tokens."""
    context, continuation = request
    device = loaded.model.embedding.weight.device
    tokens_BT = torch.tensor([[*context, *continuation]], device=device)
    targets_BT = tokens_BT[:, 1:].clone()
    targets_BT[:, : len(context) - 1] = _NOT_COUNTED
    state, nats, is_greedy = None, 0.0, True
    for inputs_BT, part_BT in zip(tokens_BT[:, :-1].split(at_once, 1), targets_BT.split(at_once, 1), strict=True):
        logits_BTV, state = loaded.model.prefill(inputs_BT, state)
        loss = F.cross_entropy(logits_BTV.float().transpose(1, 2), part_BT, reduction="none", ignore_index=_NOT_COUNTED)
        nats += float(loss.double().sum())
        is_greedy &= bool(((logits_BTV.argmax(-1) == part_BT) | (part_BT == _NOT_COUNTED)).all())
    return Likelihood(nats, is_greedy)


def _batches(requests: Sequence[Request], max_tokens: int) -> Iterator[list[int]]:
    """Yield indices of requests, those of one length together, of at most so many tokens with what pads them."""
    order = sorted(range(len(requests)), key=lambda i: len(requests[i][0]) + len(requests[i][1]))
    batch: list[int] = []
    for i in order:
        length = len(requests[i][0]) + len(requests[i][1])
        if batch and (len(batch) + 1) * length > max_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def measure_pairs(loaded: LoadedModel, path: Path, max_pairs: int | None = None) -> dict[str, float]:
    """Return the share of minimal pairs of which the model finds the good sentence more likely, by uid and overall.

    The sum of log-probabilities of a whole sentence counts, as the authors say; of two alike neither wins.
    Warstadt et al. 2020, arXiv:1912.00582.

    Args:
        loaded: model and tokenizer.
        path: parquet file with columns sentence_good, sentence_bad and uid.
        max_pairs: of each uid, from its start; None: all.

    Raises:
        DataError: there is no such file, or it has not these columns.
    """
    chosen = _read_pairs(path, max_pairs)
    texts = [text for good, bad, _ in chosen for text in (good, bad)]
    boundary = [loaded.tokenizer.eod_id]
    requests = [(boundary, ids) for ids in loaded.tokenizer.encode_batch(texts)]
    found = measure_likelihoods(loaded, requests)
    wins: dict[str, list[bool]] = defaultdict(list)
    for number, (_, _, uid) in enumerate(chosen):
        wins[uid].append(found[2 * number].nats < found[2 * number + 1].nats)
    accuracies = {uid: sum(each) / len(each) for uid, each in sorted(wins.items())}
    return {"accuracy": sum(map(sum, wins.values())) / len(chosen), "pairs": float(len(chosen)), **accuracies}


def _read_pairs(path: Path, max_pairs: int | None) -> list[tuple[str, str, str]]:
    try:
        table = pq.read_table(path, columns=list(_PAIR_COLUMNS))
        rows = list(zip(*(table[name].cast(pa.string()).to_pylist() for name in _PAIR_COLUMNS), strict=True))
    except (OSError, pa.ArrowException, KeyError) as error:
        reason = str(error).splitlines()[0]
        remedy = f"Give a parquet file with columns {', '.join(_PAIR_COLUMNS)}"
        raise DataError("blimp", str(path), f"cannot be read ({reason})", remedy) from error
    taken: dict[str, int] = defaultdict(int)
    chosen: list[tuple[str, str, str]] = []
    for good, bad, uid in rows:
        if good and bad and uid and (max_pairs is None or taken[uid] < max_pairs):
            taken[uid] += 1
            chosen.append((good, bad, uid))
    if not chosen:
        raise DataError("blimp", str(path), "it has 0 pairs", "Give a file with pairs")
    return chosen
