"""Continue a prompt with the recurrent form: time and memory per token do not grow with the length."""

from collections.abc import Collection, Iterator

import torch

from rcdist.data.tokenizer import Tokenizer
from rcdist.model.lm import LanguageModel
from rcdist.ops.replay import Replay
from rcdist.ops.weights import WeightsQuantisedOnce

_LEAST_TEMPERATURE = 1e-200


@torch.no_grad()
def generate_ids(
    model: LanguageModel,
    prompt_ids: list[int],
    *,
    max_tokens: int,
    temperature: float,
    top_k: int | None,
    seed: int,
    stop_id: int,
    known_ids: Collection[int] | None = None,
) -> Iterator[int]:
    """Yield token ids that continue a prompt.

    Args:
        model: in evaluation mode.
        prompt_ids: at least one id; the first should be the document boundary.
        max_tokens: most ids to yield.
        temperature: 0 takes the most likely token; otherwise logits are divided by it.
        top_k: sample among the k most likely tokens; None: among all.
        seed: of the sampling.
        stop_id: ends the text; not yielded.
        known_ids: no other id is yielded: a head may have rows that the tokenizer has no id for. None: all are known.
    """
    device = model.embedding.weight.device
    generator = torch.Generator("cpu").manual_seed(seed)
    rounded, replay = WeightsQuantisedOnce(), Replay(device)
    with rounded:
        logits_BTV, state_LBS = model.prefill(torch.tensor([prompt_ids], device=device), last_only=True)
    logits_BV = logits_BTV[:, -1].contiguous()
    unknown_V = torch.full((logits_BV.shape[1],), known_ids is not None)
    if known_ids is not None:
        unknown_V[sorted(known_ids)] = False

    def step(token_B: torch.Tensor) -> None:
        logits, state = model.step(token_B, state_LBS)
        logits_BV.copy_(logits)
        state_LBS.copy_(state)

    for _ in range(max_tokens):
        logits_V = logits_BV[0].double().cpu().masked_fill(unknown_V, -torch.inf)
        token = _choose(logits_V, temperature, top_k, generator)
        if token == stop_id:
            return
        yield token
        with rounded:
            replay.run_on("step", step, [torch.tensor([token], device=device)])


def _choose(logits_V: torch.Tensor, temperature: float, top_k: int | None, generator: torch.Generator) -> int:
    if temperature == 0.0:
        return int(logits_V.argmax())
    if top_k is not None and top_k < logits_V.numel():
        smallest = logits_V.topk(top_k).values[-1]
        logits_V = logits_V.masked_fill(logits_V < smallest, -torch.inf)
    # Less than the smallest temperature that does not overflow is 0 for all that can be told apart.
    scaled_V = (logits_V - logits_V.max()) / max(temperature, _LEAST_TEMPERATURE)
    return int(torch.multinomial(torch.softmax(scaled_V, dim=0), 1, generator=generator))


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Turn a prompt into ids that begin a document; special tokens in it are text."""
    return [tokenizer.eod_id, *tokenizer.encode_batch([prompt])[0]]
