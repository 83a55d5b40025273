"""Whole training steps, prefill and decoding: our baseline over others' models, and a plan over our baseline."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rcdist.benchmark.operations import time_once
from rcdist.benchmark.pairs import measure_pairs, ratio
from rcdist.benchmark.reference_model import ReferenceModel
from rcdist.config import Architecture, ModelConfig, ReservoirConfig
from rcdist.errors import ConfigError
from rcdist.model.cost import count_parameters
from rcdist.model.lm import LanguageModel
from rcdist.model.reservoir import build_bank
from rcdist.ops.processor import has_bf16
from rcdist.ops.replay import Replay
from rcdist.ops.weights import WeightsQuantisedOnce

_DECODED = 16


def build_ours(
    model: ModelConfig, reservoir: ReservoirConfig, device: torch.device, dtype: torch.dtype
) -> LanguageModel:
    """Build our model."""
    architecture = Architecture(model, reservoir)
    return LanguageModel(architecture, build_bank(architecture), seed=0).to(device=device, dtype=dtype)


def build_llama(model: ModelConfig, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Build a Hugging Face Llama of the same depth, width and vocabulary, and about as many parameters."""
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError:
        raise ConfigError(
            "others", "llama", "needs transformers", "Install rcdist[hf], or compare with --others=port only"
        ) from None

    # Attention has as many weights as the MLGRU's f, c, g, o; so the same inner width gives the same size.
    config = LlamaConfig(
        vocab_size=model.vocab_size,
        hidden_size=model.width,
        intermediate_size=model.glu_width,
        num_hidden_layers=model.num_layers,
        num_attention_heads=max(model.width // 64, 1),
        max_position_embeddings=65536,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
        use_cache=False,
    )
    with device:  # where its weights are drawn
        llama = LlamaForCausalLM(config)
    return llama.to(device=device, dtype=dtype)


def loss_of(kind: str, model: nn.Module, tokens: Tensor) -> Tensor:
    """Return the mean loss in nats of a model of a kind on (B, T + 1) tokens."""
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    loss: Tensor
    if kind == "ours":
        loss = model(inputs, None, targets) / targets.numel()
    elif kind == "port":
        loss = model(inputs, targets)
    else:
        logits = model(input_ids=inputs).logits
        loss = nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
    return loss


def build(kind: str, model: ModelConfig, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Build the model of an arm: ours, port or llama."""
    if kind == "ours":
        return build_ours(model, ReservoirConfig(plan="T"), device, dtype)
    if kind == "port":
        return ReferenceModel(model).to(device=device, dtype=dtype)
    return build_llama(model, device, dtype)


def training_step(kind: str, model: nn.Module, tokens: Tensor, replay: Replay | None = None) -> Callable[[], float]:
    """Return a step: forward, backward and a fused AdamW update.

    Args:
        kind: of the model: ours, port or llama.
        model: on the device of the tokens.
        tokens: (B, T + 1).
        replay: of all arms that are measured side by side; on a GPU, forward and backward are a graph from the second
            step on, so that no arm waits for the host. None: one of its own.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    if tokens.device.type == "cuda":
        return _captured_step(kind, model, tokens, optimizer, replay or Replay(tokens.device))

    def run() -> float:
        optimizer.zero_grad(set_to_none=True)
        with WeightsQuantisedOnce():
            loss = loss_of(kind, model, tokens)
            loss.backward()
        optimizer.step()
        return float(loss.detach())

    return run


def _captured_step(
    kind: str, model: nn.Module, tokens: Tensor, optimizer: torch.optim.Optimizer, replay: Replay
) -> Callable[[], float]:
    kept, parameters = WeightsQuantisedOnce(), list(model.parameters())
    value = torch.zeros((), device=tokens.device)

    def work() -> None:
        with kept:
            kept.round_again()
            loss = loss_of(kind, model, tokens)
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        value.copy_(loss.detach())

    def run() -> float:
        replay.run(("train", id(model)), work)
        optimizer.step()
        return float(value)

    return run


def random_tokens(model: ModelConfig, batch: int, length: int, device: torch.device) -> Tensor:
    """Return (batch, length + 1) token ids."""
    generator = torch.Generator("cpu").manual_seed(0)
    return torch.randint(model.vocab_size, (batch, length + 1), generator=generator).to(device)


def faster_dtype(kind: str, make: Callable[[torch.dtype], nn.Module], tokens: Tensor) -> torch.dtype:
    """Return the dtype in which a training step of a model takes less time, each tried twice."""
    # Where a processor has no bfloat16, a step of the others in it takes minutes.
    candidates = [torch.float32, torch.bfloat16] if tokens.device.type == "cuda" or has_bf16() else [torch.float32]
    timed = {}
    for dtype in candidates:
        step = training_step(kind, make(dtype), tokens)
        timed[dtype] = min(time_once(step), time_once(step))
        del step
    return min(timed, key=lambda dtype: timed[dtype])


def measure_step(
    model: ModelConfig, batch: int, length: int, pairs: int, device: torch.device, others: tuple[str, ...]
) -> dict[str, Any]:
    """Time our baseline's step over the plain port's and a Llama's, each in its faster dtype."""
    tokens = random_tokens(model, batch, length, device)
    arms: dict[str, Callable[[], object]] = {}
    dtypes, sizes, replay = {}, {}, Replay(device)
    for kind in ("ours", *others):
        best = faster_dtype(kind, partial(build, kind, model, device), tokens)
        chosen = build(kind, model, device, best)
        dtypes[kind], sizes[kind] = str(best).removeprefix("torch."), sum(p.numel() for p in chosen.parameters())
        arms[kind] = training_step(kind, chosen, tokens, replay)
    seconds = measure_pairs(arms, pairs)
    found: dict[str, Any] = {kind: {"ratio": ratio(seconds["ours"], seconds[kind])} for kind in others}
    found |= {"dtype": dtypes, "parameters": sizes}
    found["median_s"] = {name: sorted(times)[len(times) // 2] for name, times in seconds.items()}
    found["peak_bytes"] = {kind: _peak(kind, model, batch, length, device, dtypes[kind]) for kind in ("ours", *others)}
    return found


def _peak(kind: str, model: ModelConfig, batch: int, length: int, device: torch.device, dtype: str) -> int:
    """Measure what a step adds to model and optimizer in a process of its own."""
    request = {"kind": kind, "model": model.model_dump(), "batch": batch, "length": length, "dtype": dtype}
    command = [sys.executable, "-m", "rcdist.benchmark.steps", json.dumps(request | {"device": device.type})]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def measure_peak(request: dict[str, Any]) -> int:
    """Return the bytes that the second step needs beyond what model, gradients and optimizer hold."""
    device, dtype = torch.device(request["device"]), getattr(torch, request["dtype"])
    model = ModelConfig(**request["model"])
    tokens = random_tokens(model, request["batch"], request["length"], device)
    built = build(request["kind"], model, device, dtype)
    # Gradients, optimizer state and compiled kernels exist before the step that is measured.
    training_step(request["kind"], built, tokens[:1, :9])()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        training_step(request["kind"], built, tokens)()
        return torch.cuda.max_memory_allocated(device) - before
    # The peak of the whole process so far is forgotten: 5 resets it (Linux, proc(5)).
    Path("/proc/self/clear_refs").write_text("5")
    before = _memory("VmRSS")
    training_step(request["kind"], built, tokens)()
    return _memory("VmHWM") - before


def _memory(field: str) -> int:
    """Return a field of this process's memory in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":")) * 1024


def measure_deltas(
    model: ModelConfig, reservoir: ReservoirConfig, batch: int, length: int, pairs: int, device: torch.device
) -> dict[str, Any]:
    """Compare a plan with plan T, each in the dtype in which its training step is faster: stored parameters, training
    step, prefill and decode."""
    baseline = ReservoirConfig(plan="T")
    tokens = random_tokens(model, batch, length, device)
    makers = {name: partial(build_ours, model, plan, device) for name, plan in (("plan", reservoir), ("T", baseline))}
    dtypes = {name: faster_dtype("ours", make, tokens) for name, make in makers.items()}
    built = {name: make(dtypes[name]) for name, make in makers.items()}
    replay = Replay(device)
    steps: dict[str, Callable[[], object]] = {
        name: training_step("ours", made, tokens, replay) for name, made in built.items()
    }
    train = measure_pairs(steps, pairs)
    filled, decoded = measure_inference(built, tokens, tokens, pairs, replay)
    counts = [count_parameters(Architecture(model, plan)).stored for plan in (reservoir, baseline)]
    found: dict[str, Any] = {"parameters": {"plan": counts[0], "T": counts[1], "ratio": counts[0] / counts[1]}}
    found["dtype"] = {name: str(dtype).removeprefix("torch.") for name, dtype in dtypes.items()}
    found["decode_steps"] = _DECODED
    for name, seconds in (("train", train), ("prefill", filled), ("decode", decoded)):
        medians = {arm: sorted(times)[len(times) // 2] for arm, times in seconds.items()}
        found[name] = {"ratio": ratio(seconds["plan"], seconds["T"]), "median_s": medians}
    return found


def measure_inference(
    built: Mapping[str, LanguageModel], tokens: Tensor, prompts: Tensor, pairs: int, replay: Replay
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Time each model's prefill of (B, T + 1) tokens, and some steps of decoding after (C, ...) prompts."""
    scopes = {name: WeightsQuantisedOnce() for name in built}

    def prefill(name: str) -> None:
        with scopes[name]:
            replay.run(("prefill", name), lambda: built[name].prefill(tokens[:, :-1], last_only=True))

    def decode(name: str) -> None:
        with scopes[name]:
            replay.run(("decode", name), lambda: _decode(built[name], prompts))

    with torch.no_grad():
        filled = measure_pairs({name: partial(prefill, name) for name in built}, pairs)
        return filled, measure_pairs({name: partial(decode, name) for name in built}, pairs)


def _decode(model: LanguageModel, tokens: Tensor) -> None:
    state = model.init_state(len(tokens))
    for t in range(_DECODED):
        _, state = model.step(tokens[:, t], state)


if __name__ == "__main__":
    print(measure_peak(json.loads(sys.argv[1])))
