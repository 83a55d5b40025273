"""Measure what frozen plans cost beside plan T on one GPU, all as graphs: `python -m tests.gpu.frozen 370m ch cd`."""

# One JSON object per preset and plan on standard output: ratios of whole steps with fused AdamW, of prefill and of
# decoding, bytes at the peak of a step, and the kernels of one pass.

import gc
import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from rcdist.benchmark.pairs import measure_pairs, ratio
from rcdist.benchmark.steps import build_ours, loss_of, measure_inference, random_tokens, training_step
from rcdist.config import Architecture, ReservoirConfig
from rcdist.model.cost import count_parameters
from rcdist.model.lm import LanguageModel
from rcdist.ops.replay import Replay
from rcdist.ops.weights import WeightsQuantisedOnce
from tests.gpu.measure import WINDOWS, read_preset

PLANS: dict[str, dict[str, Any]] = {
    "T": {"plan": "T"},
    "Gd": {"plan": "G@a"},
    "ch": {"plan": "cG@a", "topology": "hadamard"},
    "Gb": {"plan": "G@a", "topology": "block"},
    "cgoh": {"plan": "cgoG@a", "topology": "hadamard"},
    "cod": {"plan": "co@a", "output_gate": "none"},
}
PAIRS = 7


def measure(preset: str, plan: str) -> dict[str, Any]:
    """Return a plan's ratios over T, both arms in turn."""
    model, device = read_preset(preset).model, torch.device("cuda", 0)
    plans = {name: ReservoirConfig(**PLANS[name]) for name in ("T", plan)}
    tokens = random_tokens(model, WINDOWS[preset], 2048, device)
    built, peaks, profiles, replay = {}, {}, {}, Replay(device)
    steps: dict[str, Callable[[], object]] = {}
    for name, reservoir in plans.items():
        built[name] = build_ours(model, reservoir, device, torch.bfloat16)
        profiles[name] = kernels(built[name], tokens)
        peaks[name] = _peak(built[name], tokens)
        torch.cuda.empty_cache()
    for name in plans:
        steps[name] = training_step("ours", built[name], tokens, replay)
    seconds = {"train": measure_pairs(steps, PAIRS)}
    seconds["prefill"], seconds["decode"] = measure_inference(built, tokens, tokens[:1], PAIRS, replay)
    counts = {name: count_parameters(Architecture(model, reservoir)).stored for name, reservoir in plans.items()}
    found: dict[str, Any] = {"preset": preset, "plan": PLANS[plan], "device": torch.cuda.get_device_name()}
    found |= {"stored": counts[plan] / counts["T"], "peak_bytes": peaks, "graphs": replay.num_graphs}
    for what, times in seconds.items():
        found[what] = ratio(times[plan], times["T"])
        found[what]["ms"] = {name: 1000 * sorted(times[name])[PAIRS // 2] for name in times}
    return found | {"kernels_ms": profiles}


def _peak(model: LanguageModel, tokens: torch.Tensor) -> int:
    """Return the bytes that forward and backward need beyond what there is before and after."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    with WeightsQuantisedOnce():
        gradients = torch.autograd.grad(loss_of("ours", model, tokens), list(model.parameters()))
    held = sum(gradient.nbytes for gradient in gradients)
    return torch.cuda.max_memory_allocated() - before - held


def kernels(model: LanguageModel, tokens: torch.Tensor) -> dict[str, list[float]]:
    """Return milliseconds and launches of one forward and backward pass by kernel, the 25 that take longest."""
    parameters, kept = list(model.parameters()), WeightsQuantisedOnce()

    def work() -> None:
        with kept:
            torch.autograd.grad(loss_of("ours", model, tokens), parameters)

    work()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiled:
        work()
        torch.cuda.synchronize()
    found: dict[str, list[float]] = {}
    for event in profiled.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            entry = found.setdefault(event.name[:70], [0.0, 0])
            entry[0] += event.device_time / 1000
            entry[1] += 1
    return dict(sorted(found.items(), key=lambda item: -item[1][0])[:25])


if __name__ == "__main__":
    for name in sys.argv[2:]:
        print(json.dumps(measure(sys.argv[1], name)), flush=True)
        gc.collect()
        torch.cuda.empty_cache()
