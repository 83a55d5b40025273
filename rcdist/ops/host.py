"""Prepare a process to compute on the CPU: threads, denormal numbers, and memory that stays with the process."""

import ctypes

import torch

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # names of glibc's malloc.h
_LARGEST_KEPT = 2**27


def prepare_host(threads: int | None = None) -> None:
    """Set up this process once, before its first operation on a CPU.

    Args:
        threads: of one operation. None: torch's choice.

    Denormal numbers are flushed to 0: a decaying state is full of them, and each costs a hundred times a normal one.
    Freed memory is kept for the next tensor: else every large one is mapped anew and its pages are cleared at first
    touch, which took 10 % of a training step (d 512, 6 blocks, 2048 tokens). The process then holds its peak; tensors
    of 128 MiB and more are mapped by themselves, because a gap between them would be costly.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # not glibc
        return
    for name, value in ((_MMAP_THRESHOLD, _LARGEST_KEPT), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 2**26)):
        mallopt(ctypes.c_int(name), ctypes.c_int(value))


def release_freed() -> None:
    """Give freed memory back to the system, where the C library can: after work that needs far more than what stays."""
    try:
        ctypes.CDLL(None).malloc_trim(ctypes.c_size_t(0))
    except (AttributeError, OSError):  # not glibc
        return
