"""Choose who computes: plain PyTorch (reference), compiled C++ (cpu) or Triton."""

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor

from rcdist.ops import native
from rcdist.ops.int8_matmul import int8_kernel
from rcdist.ops.processor import capability

Backend = Literal["reference", "cpu", "triton"]
Choice = Literal["auto", "reference", "cpu", "triton"]


_process_choice: Choice = "auto"
_forced: ContextVar[Choice | None] = ContextVar("forced", default=None)


def force(choice: Choice) -> None:
    """Set the backend of this process, of all its threads; auto: the fastest that the tensors' device has."""
    global _process_choice
    _process_choice = choice


@contextmanager
def forced(choice: Choice) -> Iterator[None]:
    """Set the backend of this context while open."""
    token = _forced.set(choice)
    try:
        yield
    finally:
        _forced.reset(token)


def backend_of(x: Tensor) -> Backend:
    """Return the backend for operations on tensors like x.

    A forced backend that cannot work on x (another device, float64) gives way to the reference.
    """
    choice = _forced.get() or _process_choice
    if choice in ("auto", "cpu") and native.supports(x) and native.is_available():
        return "cpu"
    # Triton's interpreter runs kernels on CPU tensors: for tests only.
    interpreted = choice == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
    fits = (x.device.type == "cuda" or interpreted) and x.dtype != torch.float64
    if choice in ("auto", "triton") and fits and has_triton():
        return "triton"
    return "reference"


def twin_of(operation: str, x: Tensor) -> Any:
    """Return the module that computes an operation on tensors like x: norm_cpu, norm_triton; None: the reference does.

    Such a twin has `forward` and `backward` on plain tensors; autograd's part is the operation's own.
    """
    backend = backend_of(x)
    return None if backend == "reference" else _import(f"rcdist.ops.{operation}_{backend}")


@cache
def _import(name: str) -> ModuleType:
    return importlib.import_module(name)


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
