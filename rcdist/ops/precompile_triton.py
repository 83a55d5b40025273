"""Compile a model's Triton kernels in several threads, before the first step would do so one after the other."""

# Shapes: B windows, T time, D model width, F inner width of the GLU, V vocabulary, M tokens.

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rcdist.config import ModelConfig
from rcdist.ops import (
    cross_entropy_triton,
    gated_triton,
    norm_triton,
    norms_triton,
    product_triton,
    quantise_triton,
    scan_triton,
)

_THREADS = 8
_ROWS = 1024
"""Tokens that operations are tried on: kernels depend on their number only by what divides it."""


def precompile(
    model: ModelConfig, batch: int, length: int, dtype: torch.dtype, device: torch.device
) -> threading.Thread:
    """Start to compile what training steps launch, frozen matrices apart; where all is compiled, it takes no time.

    Args:
        model: widths and norms.
        batch: windows of a micro-batch; how the scan is cut depends on it.
        length: tokens of a window.
        dtype: of weights and activations.
        device: a GPU, or in tests a CPU.

    Returns:
        A thread, to be joined before anything is captured.
    """
    work = _work(model, batch, length, dtype, device)
    thread = threading.Thread(target=_run_all, args=(work, device), daemon=True, name="precompile")
    thread.start()
    return thread


def _run_all(work: list[Callable[[], Any]], device: torch.device) -> None:
    def prepare() -> None:
        if device.type == "cuda":
            torch.cuda.set_device(device)

    with ThreadPoolExecutor(_THREADS, initializer=prepare) as pool:
        for done in [pool.submit(task) for task in work]:
            with contextlib.suppress(Exception):  # the step itself will tell
                done.result()


def _work(
    model: ModelConfig, batch: int, length: int, dtype: torch.dtype, device: torch.device, rows: int = _ROWS
) -> list[Callable[[], Any]]:
    """Return one task for each kernel, and for each tile of the product, on values that mean nothing."""
    width, inner, eps = model.width, model.glu_width, model.norm_eps

    def made(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.ones(shape, dtype=dtype, device=device)

    def norms(number: int) -> list[Callable[[], Any]]:
        x, gain, gains = made(rows, width), made(width), made(number, width)
        inverses = made(2, rows, dtype=torch.float32)
        return [
            lambda: norms_triton.forward(x, x, gain, gains, eps),
            lambda: norms_triton.backward(x, gain, gains, inverses, [x] * number, x),
        ]

    def norm() -> list[Callable[[], Any]]:
        x, gain, inverse = made(rows, width), made(width), made(rows, dtype=torch.float32)
        return [
            lambda: norm_triton.forward(x, x, gain, eps),
            lambda: norm_triton.backward(x, gain, inverse, x, x),
        ]

    def gated(channels: int, is_glu: bool) -> list[Callable[[], Any]]:
        a, gain, inverses = made(rows, channels), made(channels), made(2, rows, dtype=torch.float32)
        inner_gain = None if is_glu else gain
        return [
            lambda: gated_triton.forward(a, a, inner_gain, gain, eps),
            lambda: gated_triton.backward(a, a, inner_gain, gain, inverses, a),
        ]

    def scan() -> list[Callable[[], Any]]:
        p, gamma = made(batch, length, width), made(width, dtype=torch.float32)
        starts = made(batch, length, dtype=torch.bool)
        return [
            lambda: scan_triton.forward(0.0, p, p, gamma, None, starts),
            lambda: scan_triton.backward(0.0, p, p, gamma, None, starts, None, None, p, p, None),
        ]

    outs = {dtype, torch.float32}
    tiles = [partial(product_triton.compile_tile, tile, out, device) for tile in range(3) for out in outs]
    return [
        *tiles,
        *scan(),
        *([*norms(3), *norms(1)] if model.norm == "per_projection" else norm()),
        *gated(inner, True),
        *gated(width, False),
        partial(cross_entropy_triton.compile_kernel, model.vocab_size, dtype, device),
        lambda: quantise_triton.forward(made(width, width)),
        lambda: product_triton.scale_rows(made(16, width, dtype=torch.int8), made(16, dtype=torch.float32), dtype),
    ]
