"""Continue a prompt with the recurrent form: time and memory per token do not grow with the length."""

# Shapes: V vocabulary.

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rcdist.data.tokenizer import Tokenizer
from rcdist.inference.decoder import Decoder
from rcdist.inference.text import StopStrings, TextStream
from rcdist.model.lm import LanguageModel

_LEAST_TEMPERATURE = 1e-200


@dataclass(frozen=True)
class Sampling:
    """Say how a token is chosen.

    Attributes:
        temperature: 0 takes the most likely token; otherwise logits are divided by it.
        top_k: sample among the k most likely tokens; None: among all.
        top_p: and among the most likely ones that together have this probability, (0, 1]; always the first of them.
        seed: of the sampling.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int = 0


class Stepper(Protocol):
    """Advance one sequence, as `Decoder` does."""

    token_B: Tensor
    logits_BV: Tensor

    def prefill(self, tokens_BT: Tensor) -> None:
        """Read a prompt from the zero state."""

    def step(self) -> None:
        """Advance by `token_B`."""


@torch.no_grad()
def generate_ids(
    model: LanguageModel | Stepper,
    prompt_ids: Sequence[int],
    *,
    max_tokens: int,
    sampling: Sampling,
    stop_ids: Collection[int],
    known_ids: Collection[int] | None = None,
) -> Iterator[int]:
    """Yield token ids that continue a prompt.

    Args:
        model: in evaluation mode; or what steps one.
        prompt_ids: at least one id; the first should be the document boundary.
        max_tokens: most ids to yield.
        sampling: how each is chosen.
        stop_ids: any of them ends the text; not yielded.
        known_ids: no other id is yielded: a head may have rows that the tokenizer has no id for. None: all are known.
    """
    generator = torch.Generator("cpu").manual_seed(sampling.seed)
    decoder = Decoder(model, 1) if isinstance(model, LanguageModel) else model
    decoder.prefill(torch.tensor([list(prompt_ids)], device=decoder.token_B.device))
    unknown_V = unknown_mask(decoder.logits_BV.shape[1], known_ids)
    for _ in range(max_tokens):
        token = choose(decoder.logits_BV[0].double().cpu().masked_fill(unknown_V, -torch.inf), sampling, generator)
        if token in stop_ids:
            return
        yield token
        decoder.token_B.fill_(token)
        decoder.step()


def unknown_mask(vocab_size: int, known_ids: Collection[int] | None) -> Tensor:
    """Return bool (V,), True where a tokenizer has no id."""
    mask_V = torch.full((vocab_size,), known_ids is not None)
    if known_ids is not None:
        mask_V[sorted(known_ids)] = False
    return mask_V


def choose(logits_V: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """Choose a token.

    Args:
        logits_V: float64, on the CPU; -inf for what must not be chosen.
        sampling: how; its seed is the generator's.
        generator: on the CPU; drawn from once unless the temperature is 0.
    """
    if sampling.temperature == 0.0:
        return int(logits_V.argmax())
    if sampling.top_k is not None and sampling.top_k < logits_V.numel():
        smallest = logits_V.topk(sampling.top_k).values[-1]
        logits_V = logits_V.masked_fill(logits_V < smallest, -torch.inf)
    # Less than the smallest temperature that does not overflow is 0 for all that can be told apart.
    scaled_V = (logits_V - logits_V.max()) / max(sampling.temperature, _LEAST_TEMPERATURE)
    chances_V = torch.softmax(scaled_V, dim=0)
    if sampling.top_p < 1.0:
        sorted_V, order_V = chances_V.sort(descending=True, stable=True)
        # Those before it have less than top_p together; the most likely one always stays.
        dropped_V = sorted_V.cumsum(0) - sorted_V >= sampling.top_p
        dropped_V[0] = False
        chances_V[order_V[dropped_V]] = 0.0
    return int(torch.multinomial(chances_V, 1, generator=generator))


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Turn a prompt into ids that begin a document; special tokens in it are text."""
    return [tokenizer.eod_id, *tokenizer.encode_batch([prompt])[0]]


def generate_text(
    model: LanguageModel | Stepper,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    max_tokens: int,
    sampling: Sampling,
    stops: Sequence[str] = (),
) -> Iterator[str]:
    """Yield the continuation of a prompt, piece by piece as it is made.

    Args:
        model: in evaluation mode; or what steps one.
        tokenizer: of the model.
        prompt: text to continue.
        max_tokens: most tokens to make.
        sampling: how each is chosen.
        stops: strings of which any ends the text; it is not yielded.
    """
    prompt_ids = encode_prompt(tokenizer, prompt)
    stream, stop = TextStream(tokenizer, prompt_ids), StopStrings(stops)
    ids = generate_ids(
        model,
        prompt_ids,
        max_tokens=max_tokens,
        sampling=sampling,
        stop_ids={tokenizer.eod_id},
        known_ids=tokenizer.known_ids,
    )
    for token in ids:
        if piece := stop.push(stream.push([token])):
            yield piece
        if stop.is_found:
            return
    last = stop.push(stream.finish()) + stop.finish()
    if last:
        yield last
