"""Compile the C++ kernels once per machine and source, and call them; without a compiler the reference is used."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SOURCES = Path(__file__).with_name("cpu")
"""Folder of the kernels; every .cpp in it goes into one library."""

_FLAGS = (
    "-std=c++17 -O3 -march=native -mprefer-vector-width=512 -fopenmp -fPIC -shared "
    # Sums may be reordered to vectorise them; NaN and Inf must survive, so no -ffast-math.
    "-fno-math-errno -fno-trapping-math -fno-signed-zeros -fassociative-math"
).split()

_DTYPES = {torch.float32: 0, torch.bfloat16: 1}

_TYPES: dict[type, type] = {
    type(None): ctypes.c_void_p,
    bool: ctypes.c_int,
    int: ctypes.c_int64,
    float: ctypes.c_float,
}


observers: list[Callable[[str, tuple[Any, ...]], None]] = []
"""Called with the name and the arguments of every kernel that runs, for measurements."""


def is_available() -> bool:
    """Say whether the kernels could be compiled and loaded; compiles at the first call (5 s)."""
    return _library() is not None


def supports(x: Tensor) -> bool:
    """Say whether the kernels work on tensors like x: on a CPU, float32 or bfloat16."""
    return x.device.type == "cpu" and x.dtype in _DTYPES


def call(kernel: str, like: Tensor, *arguments: Any) -> None:
    """Call a kernel in the dtype of `like` with as many threads as torch uses.

    Args:
        kernel: its name without `rc_`.
        like: float32 or bfloat16.
        arguments: tensors (their addresses; checked to be on the CPU), None, ints and floats, in the order of the C++.
    """
    for observe in observers:
        observe(kernel, arguments)
    function = _function(kernel, tuple(map(_type, arguments)))
    addresses = [argument.data_ptr() if isinstance(argument, Tensor) else argument for argument in arguments]
    function(_DTYPES[like.dtype], *addresses, torch.get_num_threads())


def _type(argument: Any) -> type:
    if isinstance(argument, Tensor):
        assert argument.is_cpu
        return ctypes.c_void_p
    return _TYPES[type(argument)]


@cache
def _function(kernel: str, types: tuple[type, ...]) -> Any:
    """Return a kernel that takes Python's numbers: converting each by itself took longer than small kernels run."""
    library = _library()
    assert library is not None
    return ctypes.CFUNCTYPE(None, ctypes.c_int, *types, ctypes.c_int)(("rc_" + kernel, library))


@cache
def _library() -> ctypes.CDLL | None:
    path = _cached_path()
    try:
        if not path.exists():
            _compile(path)
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.CalledProcessError) as error:
        detail = error.stderr.strip().splitlines() if isinstance(error, subprocess.CalledProcessError) else [str(error)]
        print(
            f"backend cpu is not available, the slower plain PyTorch one is used: {(detail or ['?'])[-1]}. "
            "Install g++ to have it.",
            file=sys.stderr,
            flush=True,
        )
        return None


def _cached_path() -> Path:
    """Name the library after everything that decides its code: sources, flags, processor and compiler."""
    digest = hashlib.sha256(" ".join(_FLAGS).encode())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.read_bytes())
    digest.update(_processor().encode() + str(shutil.which(_compiler())).encode())
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "rcdist"
    return folder / f"kernels-{digest.hexdigest()[:16]}.so"


def _compiler() -> str:
    return os.environ.get("CXX", "g++")


def _processor() -> str:
    """Return what tells processors apart: a home folder may be shared by machines that differ."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return platform.machine() + platform.processor()


def _compile(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        built = Path(folder) / path.name
        sources = [str(source) for source in sorted(SOURCES.glob("*.cpp"))]
        command = [_compiler(), *_FLAGS, *sources, "-o", str(built)]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
        built.replace(path)  # in one step: another process finds a whole library or none
