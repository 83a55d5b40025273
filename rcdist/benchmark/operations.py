"""One operation at a time: a frozen matrix over a trained one, and the scan over copying memory."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rcdist.benchmark.pairs import measure_pairs, ratio
from rcdist.config import Architecture, ModelConfig, ReservoirConfig
from rcdist.model.reservoir import build_bank
from rcdist.ops.norm import add_norm_quantise
from rcdist.ops.project import Frozen, Trained, project
from rcdist.ops.quantise import Quantised
from rcdist.ops.replay import Replay
from rcdist.ops.scan import gated_scan
from rcdist.ops.topology import TOPOLOGIES


def measure_frozen(width: int, tokens: int, pairs: int, device: torch.device) -> dict[str, Any]:
    """Time forward and backward of one square matrix, frozen over trained; the trained one is quantised once in it."""
    dtype = torch.bfloat16
    x = torch.randn(tokens, width, device=device, dtype=dtype)
    z = add_norm_quantise(x, None, torch.ones(width, device=device, dtype=dtype), 1e-6)[1]
    dy, replay = torch.randn(tokens, width, device=device, dtype=dtype), Replay(device)

    def arm(projection: Trained | Frozen) -> Callable[[], None]:
        trained = projection.weight_NK if isinstance(projection, Trained) else projection.gain_N
        assert trained is not None

        def work() -> None:
            handle = x.detach().requires_grad_()
            (y,) = project(Quantised(handle, z.values, z.scale), [projection])
            torch.autograd.grad(y, [handle, trained], dy)

        return lambda: replay.run(id(trained), work)

    arms: dict[str, Callable[[], object]] = {
        "trained": arm(Trained(torch.randn(width, width, device=device, dtype=dtype).requires_grad_()))
    }
    for topology in TOPOLOGIES:
        config = ReservoirConfig(plan="c@a", topology=topology)
        bank = build_bank(Architecture(ModelConfig(num_layers=1, width=width), config)).to(device)
        gain = torch.ones(width, device=device, dtype=dtype).requires_grad_()
        arms[topology] = arm(Frozen(bank.linear_map("c@a"), bank.scale("c@a"), gain))
    seconds = measure_pairs(arms, pairs)
    found: dict[str, Any] = {t: {"ratio": ratio(seconds[t], seconds["trained"])} for t in TOPOLOGIES}
    return found | {"median_s": {name: sorted(times)[len(times) // 2] for name, times in seconds.items()}}


def measure_scan(width: int, tokens: int, lengths: list[int], pairs: int, device: torch.device) -> dict[str, Any]:
    """Time the gated scan's forward over T at equal tokens, as a share of the bandwidth of copying, and per token."""
    dtype = torch.bfloat16
    source = torch.randn(3 * tokens * width, device=device).to(dtype)
    target = torch.empty_like(source)
    gamma = torch.rand(width, device=device)

    def copy() -> Tensor:
        return target.copy_(source)

    def arm(length: int) -> Callable[[], Any]:
        shape = (max(tokens // length, 1), length, width)
        pf, pc = (torch.randn(shape, device=device).to(dtype) for _ in range(2))
        return lambda: gated_scan(pf, pc, gamma)

    with torch.no_grad():
        arms: dict[str, Callable[[], Any]] = {str(length): arm(length) for length in lengths}
        seconds = measure_pairs({"copy": copy, **arms}, pairs)
    # A copy reads and writes 3 elements per token and channel; the scan reads 2 and writes 1.
    found: dict[str, Any] = {}
    for length in lengths:
        times = seconds[str(length)]
        share = ratio([t / 2 for t in seconds["copy"]], times)
        found[str(length)] = {"bandwidth_share": share, "ratio": ratio(times, seconds[str(lengths[0])])}
    copied = sorted(seconds["copy"])[pairs // 2]
    return found | {"copy_bytes_per_s": 2 * source.numel() * source.element_size() / copied}


def time_once(work: Callable[[], Any]) -> float:
    """Return the seconds of one run after one warm-up."""
    work()
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began
