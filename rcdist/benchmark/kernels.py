"""The Triton kernels on a GPU, each as a share of what the device can do at best."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from rcdist.config import Architecture, ModelConfig, ReservoirConfig
from rcdist.model.reservoir import build_bank
from rcdist.ops.backend import forced
from rcdist.ops.gated import glu_quantise
from rcdist.ops.norm import add_norm_quantise
from rcdist.ops.scan import gated_scan
from rcdist.ops.topology import HadamardMap


def seconds_of(run: Callable[[], Any], repeats: int = 20) -> float:
    """Return the median seconds of a run on the device, by events; what the host needs to launch it is not in them."""
    for _ in range(3):
        run()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(1_000_000)  # half a millisecond, in which the host launches everything
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 1000)
    return sorted(times)[repeats // 2]


def measure_kernels(tokens: int = 32768, width: int = 2048) -> dict[str, Any]:
    """Measure ceilings and kernels, each as a share of its ceiling."""
    from rcdist.ops import product_triton

    bf16, device = torch.bfloat16, torch.device("cuda")
    source, target = torch.empty(2, 2**30, dtype=torch.uint8, device=device)
    copy_rate = 2 * source.numel() / seconds_of(lambda: target.copy_(source))
    found: dict[str, Any] = {"copy_bytes_per_s": copy_rate}

    def bandwidth(name: str, run: Callable[[], Any], moved: int) -> None:
        seconds = seconds_of(run)
        found[name] = {"s": seconds, "bytes": moved, "share_of_copy": moved / seconds / copy_rate}

    size = tokens * width
    x, delta = (torch.randn(tokens, width, device=device, dtype=bf16) for _ in range(2))
    gain = torch.ones(width, device=device, dtype=bf16)
    with torch.no_grad(), forced("triton"):
        bandwidth("add norm quantise", lambda: add_norm_quantise(x, delta, gain, 1e-6), size * 7)
        bandwidth("norm quantise", lambda: add_norm_quantise(x, None, gain, 1e-6), size * 3)
        bandwidth("glu", lambda: glu_quantise(x, delta, gain, 1e-6), size * 5)
        gamma = torch.rand(width, device=device)
        for batch in (64, 16, 4, 1):
            shape = (batch, tokens // batch, width)
            pf, pc = x.view(shape), delta.view(shape)
            bandwidth(f"scan B {batch}", partial(gated_scan, pf, pc, gamma), size * 6)
    codes = torch.randint(-127, 128, (tokens, width), device=device, dtype=torch.int8)
    ternary = torch.randint(-1, 2, (width, width), device=device, dtype=torch.int8)
    rows, columns = torch.rand(tokens, device=device), torch.rand(width, device=device)
    weight, flops = torch.randn(width, width, device=device, dtype=bf16), 2 * tokens * width * width
    for name, run in (
        ("bf16 product", lambda: x @ weight.t()),
        ("int8 product, library", lambda: torch._int_mm(codes, ternary.t())),
        ("int8 product with scales", lambda: product_triton.dense_product(x, codes, rows, ternary, columns)),
        ("scale rows", lambda: product_triton.scale_rows(codes, rows, bf16)),
    ):
        seconds = seconds_of(run)
        found[name] = {"s": seconds, "flops_per_s": flops / seconds}
    bank = build_bank(
        Architecture(ModelConfig(num_layers=1, width=width), ReservoirConfig(plan="c@a", topology="hadamard"))
    )
    matrix = bank.to(device).linear_map("c@a")
    assert isinstance(matrix, HadamardMap)
    seconds = seconds_of(lambda: product_triton.hadamard_expand(codes, rows, columns, matrix, bf16))
    found["hadamard"] = {"s": seconds, "over bf16 product": seconds / found["bf16 product"]["s"]}
    return found
