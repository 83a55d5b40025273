"""What this process may use of its processor, and a variable that makes it act like one with less."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, get_args

import torch

from rcdist.errors import ConfigError

Isa = Literal["native", "avx2", "x86-64"]
"""Instructions that are used: all that the processor has; AVX2 and FMA at most; those of every x86-64."""

MAX_ISA = "RCDIST_MAX_CPU_ISA"
"""Environment variable that limits a process, and the libraries it uses, to an Isa: to test there what others have."""

_LIBRARIES: dict[Isa, dict[str, str]] = {
    "native": {},
    "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "x86-64": {"ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
}


def _limit_libraries() -> Isa:
    """Tell torch's libraries of the limit; each reads its variable at its first operation."""
    name = os.environ.get(MAX_ISA, "native")
    if name not in get_args(Isa):
        raise ConfigError(MAX_ISA, name, f"not one of {', '.join(get_args(Isa))}", "Correct it, or unset it")
    isa: Isa = name  # type: ignore[assignment]
    os.environ.update(_LIBRARIES[isa])
    return isa


_process_isa = _limit_libraries()
_isa: ContextVar[Isa] = ContextVar("isa", default=_process_isa)


def isa() -> Isa:
    """Return which instructions this process uses."""
    return _isa.get()


@contextmanager
def limited(to: Isa) -> Iterator[None]:
    """Limit our own kernels and choices while open, not the libraries: for tests."""
    token = _isa.set(to)
    try:
        yield
    finally:
        _isa.reset(token)


def capability() -> str:
    """Name the widest vectors that are used, in lower case: avx512, avx2, default (torch's names), ..."""
    found = torch.backends.cpu.get_cpu_capability().lower()
    return min(found, "avx2", key=_RANK.index) if isa() != "native" and found in _RANK else found


_RANK = ["default", "avx2", "avx512"]


def has_onednn_avx512() -> bool:
    """Say whether oneDNN is there and has AVX-512 to use."""
    return torch.backends.mkldnn.is_available() and capability() == "avx512"


def has_onednn_int8() -> bool:
    """Say whether oneDNN multiplies int8 fast: without AVX-512 VNNI torch calls a plain loop instead."""
    return has_onednn_avx512() and torch.cpu._is_vnni_supported()


def has_amx() -> bool:
    """Say whether the processor has tiles for int8, which oneDNN uses and our kernels do not."""
    return has_onednn_int8() and torch.cpu._is_amx_tile_supported()


def has_bf16() -> bool:
    """Say whether a product in bfloat16 is faster than one in float32."""
    has_onednn = torch.backends.mkldnn.is_available()
    return isa() == "native" and has_onednn and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
