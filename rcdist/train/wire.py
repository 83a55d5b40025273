"""Count the bytes that a worker hands to collectives, those of frozen tensors apart: measured, not assumed."""

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch.distributed as dist
from torch import Tensor

# Position of the tensors that a rank sends; what it receives is another argument.
_SENT: dict[str, int] = {
    "all_reduce": 0,
    "broadcast": 0,
    "reduce": 0,
    "all_gather": 1,
    "all_gather_into_tensor": 1,
    "all_gather_single": 1,
    "all_gather_coalesced": 1,
    "all_reduce_coalesced": 0,
    "reduce_scatter": 1,
    "reduce_scatter_tensor": 1,
    "reduce_scatter_single": 1,
    "all_to_all_single": 1,
    "all_to_all": 1,
    "gather": 0,
    "scatter": 1,
    "send": 0,
    "isend": 0,
}
_NAMES = {0: ("tensor", "tensors"), 1: ("input_tensor", "input", "tensor", "input_list", "scatter_list")}


@dataclass(frozen=True)
class WireBytes:
    """Hold payload bytes that one worker handed to collectives.

    Attributes:
        trained: gradients, weights, losses: everything that is not a tensor of the bank.
        frozen: tensors that share memory with the bank.
    """

    trained: int = 0
    frozen: int = 0


class WireMeter:
    """Count what passes through torch.distributed in this process while `installed`.

    A payload counts once per call, whatever the collective's algorithm moves between machines. Objects that are pickled
    (digests, at start and at checkpoints) go through `broadcast` and `all_gather` as bytes and count as trained.

    Args:
        frozen: tensors of the bank.
    """

    def __init__(self, frozen: Iterable[Tensor]) -> None:
        self._frozen = {tensor.untyped_storage().data_ptr() for tensor in frozen}
        self._trained_bytes = self._frozen_bytes = 0

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Count in this meter; enter it before DeepSpeed, which keeps references to collectives, is imported."""
        _wrap_collectives()
        global _counting
        previous, _counting = _counting, self
        try:
            yield
        finally:
            _counting = previous

    def take(self) -> WireBytes:
        """Return the bytes since the last call."""
        taken = WireBytes(self._trained_bytes, self._frozen_bytes)
        self._trained_bytes = self._frozen_bytes = 0
        return taken

    def count(self, payload: Any) -> None:
        """Add a tensor, or every tensor of a list."""
        if isinstance(payload, Tensor):
            size = payload.numel() * payload.element_size()
            if payload.untyped_storage().data_ptr() in self._frozen:
                self._frozen_bytes += size
            else:
                self._trained_bytes += size
        elif isinstance(payload, list | tuple):
            for item in payload:
                self.count(item)


_counting: WireMeter | None = None
"""The meter of this process, not of a context: on a GPU gradients are reduced from threads that autograd started."""

_is_inside: ContextVar[bool] = ContextVar("is_inside", default=False)
"""Whether a collective is running already: those that are written in terms of others count once, at the outside."""


@cache
def _wrap_collectives() -> None:
    """Replace every collective by one that counts, once per process: DeepSpeed keeps references to them."""
    for name, place in _SENT.items():
        if hasattr(dist, name):
            setattr(dist, name, _wrap(getattr(dist, name), place))


def _wrap(collective: Callable[..., Any], place: int) -> Callable[..., Any]:
    @functools.wraps(collective)
    def counted(*args: Any, **kwargs: Any) -> Any:
        if _counting is None or _is_inside.get():
            return collective(*args, **kwargs)
        _counting.count(args[place] if len(args) > place else _find(kwargs, place))
        token = _is_inside.set(True)
        try:
            return collective(*args, **kwargs)
        finally:
            _is_inside.reset(token)

    return counted


def _find(kwargs: dict[str, Any], place: int) -> Any:
    return next((kwargs[name] for name in _NAMES[place] if name in kwargs), None)
