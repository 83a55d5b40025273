"""Choose who computes: plain PyTorch (reference), compiled C++ (cpu) or Triton."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from rcdist.ops import native
from rcdist.ops.int8_matmul import int8_kernel
from rcdist.ops.processor import capability

Backend = Literal["reference", "cpu", "triton"]
Choice = Literal["auto", "reference", "cpu", "triton"]


class _Forced:
    choice: Choice = "auto"


def force(choice: Choice) -> None:
    """Set the backend of this process; auto: the fastest that the tensors' device has."""
    _Forced.choice = choice


@contextmanager
def forced(choice: Choice) -> Iterator[None]:
    """Set the backend while open."""
    before, _Forced.choice = _Forced.choice, choice
    try:
        yield
    finally:
        _Forced.choice = before


def backend_of(x: Tensor) -> Backend:
    """Return the backend for operations on tensors like x.

    A forced backend that cannot work on x (another device, float64) gives way to the reference.
    """
    choice = _Forced.choice
    if choice in ("auto", "cpu") and native.supports(x) and native.is_available():
        return "cpu"
    # Triton's interpreter runs kernels on CPU tensors: for tests only.
    interpreted = choice == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
    fits = (x.device.type == "cuda" or interpreted) and x.dtype != torch.float64
    if choice in ("auto", "triton") and fits and has_triton():
        return "triton"
    return "reference"


def describe_backend(x: Tensor) -> str:
    """Say who computes on tensors like x: `backend cpu: avx2, int8 products by c++`."""
    backend = backend_of(x)
    if x.device.type != "cpu":
        return f"backend {backend}"
    return f"backend {backend}: {capability()}, int8 products by {int8_kernel()}"


@cache
def has_triton() -> bool:
    """Say whether Triton can be imported."""
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True
