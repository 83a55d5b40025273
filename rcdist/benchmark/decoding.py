"""Inference: our packed model over a Hugging Face Llama of as many parameters, and a packed plan over plan T."""

# Shapes: B sequences, T tokens, V vocabulary.

import gc
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rcdist.benchmark.operations import time_once
from rcdist.benchmark.pairs import measure_pairs, ratio
from rcdist.benchmark.residence import decode_llama, measure_residence
from rcdist.benchmark.static_llama import StaticLlama
from rcdist.benchmark.steps import build_llama, build_ours, random_tokens
from rcdist.config import Architecture, ModelConfig, ReservoirConfig
from rcdist.inference.decoder import Decoder
from rcdist.inference.packed import pack_model, resident_bytes
from rcdist.model.bitlinear import FrozenLinear
from rcdist.model.lm import LanguageModel
from rcdist.model.reservoir import build_bank
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
    memory, prompt = _Memory(device), tokens[:, :length]

    def work_ours(ours: LanguageModel) -> None:
        decoder = Decoder(ours, batch)
        decoder.prefill(prompt)
        decode_greedily(decoder, tokens[:, 0], count)

    def work_llama(llama: nn.Module) -> None:
        _prefill_llama(llama, prompt)
        decode_llama(llama, tokens[:, 0], count)

    packed = {
        name: memory.build(name, partial(build_packed, model, each, device, dtype), work_ours)
        for name, each in (("T", ReservoirConfig(plan="T")), ("plan", plan))
    }
    decode: dict[str, Callable[[], Tensor]] = {}
    prefill: dict[str, Callable[[], Tensor]] = {}
    scopes = {name: WeightsQuantisedOnce() for name in packed}
    for name, ours in packed.items():
        decode[name] = partial(decode_greedily, Decoder(ours, batch), tokens[:, 0], count)
        prefill[name] = partial(_prefill, ours, scopes[name], tokens[:, :length])
    found: dict[str, Any] = {"tokens": count, "batch": batch, "prefill_tokens": length}
    found["weights_bytes"] = {name: resident_bytes(ours) for name, ours in packed.items()}
    if "llama" in others:
        if device.type == "cuda":
            llama = memory.build("llama", lambda: build_llama(model, device, dtype).eval(), work_llama)
            llamas = {"decode": llama, "prefill": llama}
        else:
            llamas = {
                "decode": _faster_llama(model, device, partial(decode_llama, first_B=tokens[:, 0], count=_TRIED)),
                "prefill": _faster_llama(model, device, partial(_prefill_llama, tokens_BT=prompt)),
            }
        decode["llama"] = partial(_llama_decoder(llamas["decode"], batch, count), tokens[:, 0], count)
        prefill["llama"] = partial(_prefill_llama, llamas["prefill"], tokens[:, :length])
        found["llama_dtype"] = {name: str(llama.dtype).removeprefix("torch.") for name, llama in llamas.items()}
        found["weights_bytes"]["llama_bf16"] = 2 * sum(p.numel() for p in llamas["decode"].parameters())
    if memory.peaks:
        found["peak_bytes"] = memory.peaks
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


def _llama_decoder(llama: nn.Module, batch: int, count: int) -> Callable[[Tensor, int], Tensor]:
    """Return what decodes with a Llama: on a GPU with a static cache, from a graph."""
    if next(llama.parameters()).device.type == "cuda":
        return StaticLlama(llama, batch, count).decode
    return partial(decode_llama, llama)


def build_packed(model: ModelConfig, plan: ReservoirConfig, device: torch.device, dtype: torch.dtype) -> LanguageModel:
    """Build our model of random weights, packed; on a GPU drawn there, not as training does."""
    if device.type == "cpu":
        return pack_model(build_ours(model, plan, device, dtype))
    architecture = Architecture(model, plan)
    with torch.device("meta"):
        made = LanguageModel(architecture, build_bank(architecture), seed=0).to(dtype)
    made.to_empty(device=device)
    made.bank = build_bank(architecture).to(device)
    for module in made.modules():
        if isinstance(module, FrozenLinear):
            object.__setattr__(module, "bank", made.bank)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() == 1:
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, 0.02)
    return pack_model(made)


class _Memory:
    """Note the most bytes of device memory that an arm takes when it is built and run alone, before all others."""

    def __init__(self, device: torch.device) -> None:
        self._is_on_gpu = device.type == "cuda"
        self.peaks: dict[str, int] = {}

    def build(self, name: str, build: Callable[[], Any], work: Callable[[Any], object]) -> Any:
        """Return what `build` makes, after it has worked once; what building took besides is not counted."""
        if not self._is_on_gpu:
            return build()
        gc.collect()
        before = torch.cuda.memory_allocated()
        made = build()
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        with torch.inference_mode():
            work(made)
        self.peaks[name] = torch.cuda.max_memory_allocated() - before
        return made


def decode_greedily(decoder: Decoder, first_B: Tensor, count: int) -> Tensor:
    """Decode some tokens from the zero state and return the last ones, (B)."""
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
