"""Copy a worker's state from a GPU into page-locked host memory, while training goes on."""

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from rcdist.checkpoint.files import to_host

_ALIGNMENT = 512


class Staging:
    """Hold one copy of a worker's state in host memory; on a GPU it is made in a stream of its own.

    Host memory into which a GPU copies at full speed must be page-locked, which takes about a second for 2 GB: a thread
    does so ahead of the first copy. What does not fit, and what is on a CPU, is copied at once.

    Args:
        device: where the state is.
        expected_bytes: of a copy.
    """

    def __init__(self, device: torch.device, expected_bytes: int) -> None:
        self._is_side_stream = device.type == "cuda"
        self._memory = torch.empty(0, dtype=torch.uint8, device="cpu")
        self._used = 0
        self._copied: torch.cuda.Event | None = None
        if self._is_side_stream:
            self._stream = torch.cuda.Stream(device)
            self._reserving = threading.Thread(target=self._reserve, args=(expected_bytes,), daemon=True)
            self._reserving.start()

    def _reserve(self, num_bytes: int) -> None:
        # Written to first: else its pages are made under a lock of the driver that stops all other work on the device.
        with contextlib.suppress(RuntimeError):  # there is too little of it
            memory = torch.empty(num_bytes, dtype=torch.uint8, device="cpu").fill_(1)
            # Not by pin_memory, whose allocator rounds up to a power of two.
            if int(torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), num_bytes, 0)) == 0:
                self._memory = memory

    def copy(self, gather: Callable[[Callable[[Any], Any]], None]) -> None:
        """Copy whatever `gather` finds, after all work that the device has so far.

        Args:
            gather: is called once, with a function that copies every tensor of nested dicts, lists and tuples into host
                memory; the copies hold their values once `wait` returns.
        """
        if not self._is_side_stream:
            gather(to_host)
            return
        self._reserving.join()
        self._used = 0
        self._stream.wait_stream(torch.cuda.current_stream())
        gather(lambda value: tree_map_only(Tensor, self._stage, value))
        self._copied = self._stream.record_event()

    def _stage(self, tensor: Tensor) -> Tensor:
        source = tensor.detach()
        place, size = self._used, source.numel() * source.element_size()
        if source.device.type != "cuda" or not size or place + size > len(self._memory):
            return to_host(source)
        self._used += -(-size // _ALIGNMENT) * _ALIGNMENT
        # A tensor with a storage of its own: torch.save writes whole storages.
        buffer = self._memory.numpy()[place : place + size]
        target = torch.frombuffer(buffer, dtype=torch.uint8).view(source.dtype).view(source.shape)
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
        source.record_stream(self._stream)
        return target

    def protect(self) -> None:
        """Let the device finish the copy before it changes anything."""
        if self._copied is not None:
            torch.cuda.current_stream().wait_event(self._copied)

    def wait(self) -> None:
        """Wait until the copy is there; from any thread."""
        if self._copied is not None:
            self._copied.synchronize()

    def close(self) -> None:
        """Give the memory back."""
        if self._is_side_stream:
            self._reserving.join()
        self.wait()
        if len(self._memory):
            with contextlib.suppress(RuntimeError):  # the process may be ending
                torch.cuda.cudart().cudaHostUnregister(self._memory.data_ptr())
            self._memory = self._memory[:0]
