"""Measure a preset's bare captured step on one GPU, alone and beside Llama's: `python -m tests.gpu.measure 370m`."""

# What a job would reach with nothing around it: micro-batches as graphs, their gradients summed, AdamW over flat
# float32 weights. One JSON object per preset on standard output.

import gc
import json
import sys
import time
from typing import Any

import torch
import yaml
from torch.profiler import ProfilerActivity, profile

from rcdist.benchmark.pairs import measure_pairs, ratio
from rcdist.benchmark.steps import build, random_tokens, training_step
from rcdist.config import JobConfig
from rcdist.model.lm import LanguageModel
from rcdist.model.reservoir import build_bank
from rcdist.ops.replay import Replay
from rcdist.ops.weights import WeightsQuantisedOnce
from rcdist.train.flat_gradients import FlatGradients, plain_layouts
from tests.conftest import ROOT

MICRO_BATCHES, STEPS = 16, 5
WINDOWS = {"370m": 16, "1.3b": 8, "2.7b": 4}
"""Of a micro-batch."""


def measure(preset: str) -> dict[str, Any]:
    """Return tokens per second of whole steps of 16 micro-batches, and what one pass consists of."""
    config, device = read_preset(preset), torch.device("cuda", 0)
    built = LanguageModel(config.architecture, build_bank(config.architecture), seed=0).to(device, torch.bfloat16)
    parameters = list(built.parameters())
    shape = (WINDOWS[preset], config.data.seq_len)
    tokens, targets = (torch.randint(config.model.vocab_size, shape, device=device) for _ in range(2))
    starts = torch.rand(shape, device=device) < 1 / 500
    weights = torch.ones(shape, device=device)
    gradients = FlatGradients(plain_layouts([{"params": parameters}]), device)
    master = torch.cat([p.detach().flatten() for p in parameters]).float().requires_grad_()
    optimizer = torch.optim.AdamW([master], lr=1e-4, fused=True)
    kept, replay = WeightsQuantisedOnce(), Replay(device)

    def work() -> None:
        loss = built(tokens, starts, targets, weights) / tokens.numel()
        gradients.add(torch.autograd.grad(loss, parameters))

    def step() -> None:
        gradients.clear()
        replay.run("weights", kept.round_again)
        with kept:
            for _ in range(MICRO_BATCHES):
                replay.run("pass", work)
        (master.grad,) = gradients.share_out(torch.float32, 1)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_copy_(
                list(parameters), [v.view(p.shape) for v, p in zip(_split(master, parameters), parameters, strict=True)]
            )

    for _ in range(3):
        step()
    times = []
    for _ in range(STEPS):
        torch.cuda.synchronize()
        began = time.perf_counter()
        step()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    seconds = sorted(times)[STEPS // 2]
    with kept, profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiled:
        work()
        torch.cuda.synchronize()
    events = [event for event in profiled.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return {
        "preset": preset,
        "device": torch.cuda.get_device_name(),
        "tokens_per_s": MICRO_BATCHES * tokens.numel() / seconds,
        "step_s": times,
        "operations_per_pass": len(events),
        "operations_per_block": len(events) / config.model.num_layers,
        "launches": _most_frequent(events),
        "peak_bytes": torch.cuda.max_memory_allocated(),
    }


def compare(preset: str, pairs: int = 7) -> dict[str, Any]:
    """Time whole steps with fused AdamW in bfloat16, all as graphs: ours over those of a Llama of equal size."""
    config, device = read_preset(preset), torch.device("cuda", 0)
    tokens = random_tokens(config.model, WINDOWS[preset], config.data.seq_len, device)
    replay, arms, shared = Replay(device), {}, config.model.model_copy(update={"norm": "shared"})
    for name, kind, model in (("ours", "ours", config.model), ("shared", "ours", shared), ("llama", "llama", shared)):
        arms[name] = training_step(kind, build(kind, model, device, torch.bfloat16), tokens, replay)
    seconds = measure_pairs(arms, pairs)
    medians = {name: sorted(times)[pairs // 2] for name, times in seconds.items()}
    return {
        "preset": preset,
        "device": torch.cuda.get_device_name(),
        "graphs": replay.num_graphs,
        "tokens_per_s": {name: tokens[:, 1:].numel() / median for name, median in medians.items()},
        "over_llama": {name: ratio(seconds[name], seconds["llama"]) for name in ("ours", "shared")},
    }


def read_preset(preset: str) -> JobConfig:
    """Read the settings of a preset."""
    return JobConfig(**yaml.safe_load((ROOT / f"jobs/configs/{preset}.yaml").read_text()))


def _split(flat: torch.Tensor, parameters: list[torch.nn.Parameter]) -> list[torch.Tensor]:
    return list(flat.split([p.numel() for p in parameters]))


def _most_frequent(events: list[Any]) -> dict[str, Any]:
    """Return how often each kernel ran, and for how many milliseconds, the 25 that took longest."""
    found: dict[str, list[float]] = {}
    for event in events:
        entry = found.setdefault(event.name[:60], [0, 0.0])
        entry[0] += 1
        entry[1] += event.device_time / 1000
    return dict(sorted(found.items(), key=lambda item: -item[1][1])[:25])


if __name__ == "__main__":
    for name in sys.argv[1:]:
        for part in (measure, compare):
            print(json.dumps(part(name)), flush=True)
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
