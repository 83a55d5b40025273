"""Inference: our packed model over a Hugging Face Llama of as many parameters, and a packed plan over plan T."""

# Shapes: B sequences, T tokens, V vocabulary.

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rcdist.benchmark.operations import time_once
from rcdist.benchmark.pairs import measure_pairs, ratio
from rcdist.benchmark.residence import decode_llama, measure_residence
from rcdist.benchmark.steps import build_llama, build_ours, random_tokens
from rcdist.config import ModelConfig, ReservoirConfig
from rcdist.inference.decoder import Decoder
from rcdist.inference.packed import pack_model, resident_bytes
from rcdist.model.lm import LanguageModel
from rcdist.ops.weights import WeightsQuantisedOnce

_TRIED = 8


def measure_decode(
    model: ModelConfig,
    plan: ReservoirConfig,
    batch: int,
    length: int,
    count: int,
    pairs: int,
    device: torch.device,
    others: tuple[str, ...],
) -> dict[str, Any]:
    """Time decoding `count` tokens from the first one on, greedily, and prefill of `length` tokens, in one command.

    Each Llama is in the dtype in which it does the work faster here; it keeps keys and values. In prefill both compute
    the logits of the last position only.
    """
    tokens = random_tokens(model, batch, length, device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    packed = {
        "T": pack_model(build_ours(model, ReservoirConfig(plan="T"), device, dtype)),
        "plan": pack_model(build_ours(model, plan, device, dtype)),
    }
    decode: dict[str, Callable[[], Tensor]] = {}
    prefill: dict[str, Callable[[], Tensor]] = {}
    scopes = {name: WeightsQuantisedOnce() for name in packed}
    for name, ours in packed.items():
        decode[name] = partial(_decode, Decoder(ours, batch), tokens[:, 0], count)
        prefill[name] = partial(_prefill, ours, scopes[name], tokens[:, :length])
    found: dict[str, Any] = {"tokens": count, "batch": batch, "prefill_tokens": length}
    found["weights_bytes"] = {name: resident_bytes(ours) for name, ours in packed.items()}
    if "llama" in others:
        llamas = {
            "decode": _faster_llama(model, device, partial(decode_llama, first_B=tokens[:, 0], count=_TRIED)),
            "prefill": _faster_llama(model, device, partial(_prefill_llama, tokens_BT=tokens[:, :length])),
        }
        decode["llama"] = partial(decode_llama, llamas["decode"], tokens[:, 0], count)
        prefill["llama"] = partial(_prefill_llama, llamas["prefill"], tokens[:, :length])
        found["llama_dtype"] = {name: str(llama.dtype).removeprefix("torch.") for name, llama in llamas.items()}
        found["weights_bytes"]["llama_bf16"] = 2 * sum(p.numel() for p in llamas["decode"].parameters())
    if device.type == "cpu":
        found["resident_bytes"] = measure_residence(model, (count, 10 * count), "llama" in others)
    with torch.inference_mode():
        for title, arms, per in (("decode", decode, batch * count), ("prefill", prefill, batch * length)):
            seconds = measure_pairs(arms, pairs)
            medians = {name: sorted(times)[len(times) // 2] for name, times in seconds.items()}
            found[title] = {"plan_over_T": ratio(seconds["plan"], seconds["T"])}
            if "llama" in arms:
                found[title]["llama_over_T"] = ratio(seconds["llama"], seconds["T"])
            found[title]["tokens_per_s"] = {name: per / median for name, median in medians.items()}
    return found


def _decode(decoder: Decoder, first_B: Tensor, count: int) -> Tensor:
    decoder.state_LBS.zero_()
    token_B = first_B
    for _ in range(count):
        decoder.token_B.copy_(token_B)
        decoder.step()
        token_B = decoder.logits_BV.argmax(-1)
    return token_B


def _prefill(model: LanguageModel, scope: WeightsQuantisedOnce, tokens_BT: Tensor) -> Tensor:
    with scope:
        return model.prefill(tokens_BT, last_only=True)[0]


def _prefill_llama(model: nn.Module, tokens_BT: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=tokens_BT, use_cache=True, logits_to_keep=1).logits
    return logits


def _faster_llama(model: ModelConfig, device: torch.device, work: Callable[[nn.Module], object]) -> nn.Module:
    """Return a Llama in the dtype in which it does some work in less time, each tried twice."""
    timed = {}
    for dtype in (torch.bfloat16, torch.float32):
        llama = build_llama(model, device, dtype).eval()
        with torch.inference_mode():
            timed[dtype] = min(time_once(partial(work, llama)) for _ in range(2))
        del llama
    return build_llama(model, device, min(timed, key=lambda dtype: timed[dtype])).eval()
