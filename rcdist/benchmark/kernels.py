"""The Triton kernels on a GPU, each as a share of what the device can do at best."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from rcdist.config import Architecture, ModelConfig, ReservoirConfig
from rcdist.model.reservoir import build_bank


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


def measure_kernels(tokens: int = 32768, width: int = 2048, inner: int = 5632) -> dict[str, Any]:
    """Measure ceilings and kernels, each as a share of its ceiling: copying memory, or a dense bfloat16 product."""
    device = torch.device("cuda")
    copy_rate = _copy_rate(device)
    return {
        "copy_bytes_per_s": copy_rate,
        **_measure_moving(tokens, width, copy_rate, device),
        **_measure_products(tokens, (width, width), "c", device),
        **_measure_products(tokens, (inner, width), "G", device),
    }


def _copy_rate(device: torch.device) -> float:
    source, target = torch.empty(2, 2**30, dtype=torch.uint8, device=device)
    return 2 * source.numel() / seconds_of(lambda: target.copy_(source))


def _measure_moving(tokens: int, width: int, copy_rate: float, device: torch.device) -> dict[str, Any]:
    """Time what does little but read and write, forward and with its backward pass."""
    from rcdist.ops import gated_triton, norm_triton, scan_triton

    found: dict[str, Any] = {}

    def add(name: str, run: Callable[[], Any], moved: int) -> None:
        seconds = seconds_of(run)
        found[name] = {"s": seconds, "bytes": moved, "share_of_copy": moved / seconds / copy_rate}

    size, bf16 = tokens * width, torch.bfloat16
    x, delta, dz = (torch.randn(tokens, width, device=device, dtype=bf16) for _ in range(3))
    gain, inverses = torch.ones(width, device=device, dtype=bf16), torch.ones(2, tokens, device=device)
    add("add norm quantise", lambda: norm_triton.forward(x, delta, gain, 1e-6), size * 7)
    add("norm quantise", lambda: norm_triton.forward(x, None, gain, 1e-6), size * 3)
    add("norm backward", lambda: norm_triton.backward(x, gain, inverses[0], dz, delta), size * 8)
    add("glu", lambda: gated_triton.forward(x, delta, None, gain, 1e-6), size * 5)
    add("glu backward", lambda: gated_triton.backward(x, delta, None, gain, inverses, dz), size * 10)
    gamma = torch.rand(width, device=device)
    for batch in (64, 16, 4, 1):
        pf, pc, dh = (t.view(batch, tokens // batch, width) for t in (x, delta, dz))
        inputs = (0.0, pf, pc, gamma, None, None, None, None)
        add(f"scan B {batch}", partial(scan_triton.forward, *inputs), size * 6)
        add(f"scan backward B {batch}", partial(scan_triton.backward, *inputs, pc, dh, None), size * 12)
    return found


def _measure_products(tokens: int, shape: tuple[int, int], letter: str, device: torch.device) -> dict[str, Any]:
    """Time products of one shape (N, K), structured ones over a dense one of bfloat16."""
    from rcdist.ops import product_triton, project_triton

    (outputs, inputs), bf16 = shape, torch.bfloat16
    codes = torch.randint(-127, 128, (tokens, inputs), device=device, dtype=torch.int8)
    ternary = torch.randint(-1, 2, shape, device=device, dtype=torch.int8)
    x, dy = (torch.randn(tokens, n, device=device, dtype=bf16) for n in (inputs, outputs))
    weight, rows = torch.randn(shape, device=device, dtype=bf16), torch.rand(tokens, device=device)
    columns = torch.ones(1, device=device).expand(outputs)
    seconds = {
        "bf16 product": seconds_of(lambda: x @ weight.t()),
        "bf16 product backward": seconds_of(lambda: dy @ weight),
        "int8 product with scales": seconds_of(lambda: product_triton.dense_product(x, codes, rows, ternary, columns)),
        "scale rows": seconds_of(lambda: product_triton.scale_rows(codes, rows, bf16)),
    }
    for topology in ("hadamard", "block"):
        config = ReservoirConfig(plan=f"{letter}@a", topology=topology)
        model = ModelConfig(num_layers=1, width=inputs, glu_width=outputs)
        matrix = build_bank(Architecture(model, config)).to(device).linear_map(f"{letter}@a")
        seconds[topology] = seconds_of(partial(project_triton.forward, x, codes, rows, matrix, columns))
        seconds[f"{topology} backward"] = seconds_of(partial(project_triton.backward, dy, matrix, columns, None))
    found = {}
    for name, taken in seconds.items():
        dense = seconds["bf16 product backward" if name.endswith("backward") else "bf16 product"]
        rate = 2 * tokens * outputs * inputs / taken
        found[f"{name} {outputs} x {inputs}"] = {"s": taken, "flops_per_s": rate, "over bf16 product": taken / dense}
    return found
