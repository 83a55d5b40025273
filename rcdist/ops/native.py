"""Compile the C++ kernels once per machine and source, and call them; without a compiler the reference is used."""

import contextlib
import ctypes
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from rcdist.ops.processor import Isa, isa

logger = logging.getLogger("rcdist")

SOURCES = Path(__file__).with_name("cpu")
"""Folder of the kernels; every .cpp in it goes into one library."""

_FLAGS = (
    "-std=c++17 -O3 -mprefer-vector-width=512 -fopenmp -fPIC "
    # Sums may be reordered to vectorise them; NaN and Inf must survive, so no -ffast-math.
    "-fno-math-errno -fno-trapping-math -fno-signed-zeros -fassociative-math"
).split()

_MARCH: dict[Isa, str] = {"native": "native", "avx2": "haswell", "x86-64": "x86-64"}

_COMPILE_S = 300.0
"""Time that compiling may take, in this process or in the one that has the lock."""

_DTYPES = {torch.float32: 0, torch.bfloat16: 1}

_TYPES: dict[type, type] = {
    type(None): ctypes.c_void_p,
    bool: ctypes.c_int,
    int: ctypes.c_int64,
    float: ctypes.c_float,
}


observers: list[Callable[[str, tuple[Any, ...]], None]] = []
"""Called with the name and the arguments of every kernel that runs, for measurements."""


_Record = Callable[[Callable[[], object], tuple[Any, ...]], None]
_record: ContextVar[_Record | None] = ContextVar("record", default=None)


@contextlib.contextmanager
def recorded(record: _Record) -> Iterator[None]:
    """Tell `record` of every call of a kernel in this context: what makes it again, and its arguments."""
    token = _record.set(record)
    try:
        yield
    finally:
        _record.reset(token)


def is_available() -> bool:
    """Say whether the kernels could be compiled and loaded; compiles at the first call (5 to 15 s)."""
    return _library(isa()) is not None


def supports(x: Tensor) -> bool:
    """Say whether the kernels work on tensors like x: on a CPU, float32 or bfloat16."""
    return x.device.type == "cpu" and x.dtype in _DTYPES


def call(kernel: str, like: Tensor | None, *arguments: Any) -> None:
    """Call a kernel in the dtype of `like` with as many threads as torch uses.

    Args:
        kernel: its name without `rc_`.
        like: float32 or bfloat16. None: the kernel has no dtype to choose.
        arguments: tensors (their addresses; checked to be on the CPU), None, ints and floats, in the order of the C++.
    """
    for observe in observers:
        observe(kernel, arguments)
    function = _function(isa(), kernel, tuple(map(_type, arguments)))
    addresses = [argument.data_ptr() if isinstance(argument, Tensor) else argument for argument in arguments]
    dtype, threads = 0 if like is None else _DTYPES[like.dtype], torch.get_num_threads()
    function(dtype, *addresses, threads)
    record = _record.get()
    if record is not None:
        record(partial(function, dtype, *addresses, threads), arguments)


def query(name: str, *arguments: int) -> int:
    """Call a function of the library that computes a whole number from whole numbers."""
    return int(_query(isa(), name, len(arguments))(*arguments))


def _type(argument: Any) -> type:
    if isinstance(argument, Tensor):
        assert argument.is_cpu
        return ctypes.c_void_p
    return _TYPES[type(argument)]


@cache
def _function(of: Isa, kernel: str, types: tuple[type, ...]) -> Any:
    """Return a kernel that takes Python's numbers: converting each by itself took longer than small kernels run."""
    library = _library(of)
    assert library is not None
    return ctypes.CFUNCTYPE(None, ctypes.c_int, *types, ctypes.c_int)(("rc_" + kernel, library))


@cache
def _query(of: Isa, name: str, count: int) -> Any:
    library = _library(of)
    assert library is not None
    return ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * count)(("rc_" + name, library))


@cache
def _library(of: Isa) -> ctypes.CDLL | None:
    flags = [*_FLAGS, f"-march={_MARCH[of]}"]
    try:
        path = _cached_path(flags)
        # One process of a machine compiles; the lock ends with it, however it ends.
        with FileLock(path.with_suffix(".lock"), timeout=_COMPILE_S):
            if not path.exists():
                _compile(path, flags)
        return ctypes.CDLL(str(path))
    except (OSError, Timeout, subprocess.SubprocessError) as error:
        detail = error.stderr.strip().splitlines() if isinstance(error, subprocess.CalledProcessError) else [str(error)]
        logger.warning(
            "backend cpu is not available, the slower plain PyTorch one is used: %s. "
            "Install g++, and let XDG_CACHE_HOME be a folder you may write, to have it.",
            (detail or ["?"])[-1],
        )
        return None


def _cached_path(flags: list[str]) -> Path:
    """Name the library after everything that decides its code: sources, flags, processor and compiler."""
    digest = hashlib.sha256(" ".join(flags).encode())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.read_bytes())
    digest.update(_processor().encode() + str(shutil.which(_compiler())).encode())
    return _cache_folder() / f"kernels-{digest.hexdigest()[:16]}.so"


def _cache_folder() -> Path:
    """Return the user's cache folder; where that cannot be written, as in containers, one among temporary files.

    Raises:
        OSError: there is none that is ours alone; what another can write is not loaded.
    """
    with contextlib.suppress(OSError, RuntimeError):  # no home at all
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "rcdist"
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        return folder
    folder = Path(tempfile.gettempdir()) / f"rcdist-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != os.getuid() or status.st_mode != stat.S_IFDIR | 0o700:
        raise OSError(f"{folder} is not a folder that only this user may use")
    return folder


def _compiler() -> str:
    return os.environ.get("CXX", "g++")


def _processor() -> str:
    """Return what tells processors apart: a home folder may be shared by machines that differ."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return platform.machine() + platform.processor()


def _compile(path: Path, flags: list[str]) -> None:
    """Compile every source by itself, side by side, and link them."""

    def run(*arguments: str) -> None:
        command = [_compiler(), *flags, *arguments]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_COMPILE_S)

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        built = Path(folder) / path.name
        sources = sorted(SOURCES.glob("*.cpp"))
        objects = [str(Path(folder) / f"{source.stem}.o") for source in sources]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda source, to: run("-c", str(source), "-o", to), sources, objects))
        run("-shared", *objects, "-o", str(built))
        built.replace(path)  # in one step: another process finds a whole library or none
