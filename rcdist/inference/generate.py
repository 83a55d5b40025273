"""Continue a prompt with the recurrent form: time and memory per token do not grow with the length."""

from collections.abc import Iterator

import torch

from rcdist.data.tokenizer import Tokenizer
from rcdist.errors import ConfigError
from rcdist.model.lm import LanguageModel
from rcdist.ops.replay import Replay
from rcdist.ops.weights import WeightsQuantisedOnce


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
    """
    device = model.embedding.weight.device
    generator = torch.Generator("cpu").manual_seed(seed)
    rounded, replay = WeightsQuantisedOnce(), Replay(device)
    with rounded:
        logits_BTV, state_LBS = model.prefill(torch.tensor([prompt_ids], device=device), last_only=True)
    logits_BV = logits_BTV[:, -1].contiguous()

    def step(token_B: torch.Tensor) -> None:
        logits, state = model.step(token_B, state_LBS)
        logits_BV.copy_(logits)
        state_LBS.copy_(state)

    for _ in range(max_tokens):
        token = _choose(logits_BV[0].float().cpu(), temperature, top_k, generator)
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
    return int(torch.multinomial(torch.softmax(logits_V / temperature, dim=0), 1, generator=generator))


def encode_prompt(tokenizer: Tokenizer, prompt: str, vocab_size: int) -> list[int]:
    """Turn a prompt into ids that begin a document.

    Raises:
        ConfigError: the tokenizer has more ids than the model.
    """
    if tokenizer.vocab_size > vocab_size:
        raise ConfigError(
            "tokenizer.vocab_size", tokenizer.vocab_size, f"the model has model.vocab_size={vocab_size}", "Use its own"
        )
    return [tokenizer.eod_id, *tokenizer.encode_batch([prompt])[0]]
