"""Count the bytes that a worker hands to collectives, those that hold frozen values apart: by what they hold."""

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
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


_WINDOW = 64
"""Neighbouring values that are compared at once: their signs are like no others' by chance."""
_LEAST_NONZERO = 16
"""Fewest of them that are not 0: a stretch of zeros is nobody's."""
_MOST_VALUES = 2**20
"""Frozen values that are known, of larger banks an even sample: 8 bytes each."""
_PIECE = 4096
"""Neighbours of such a sample."""


@dataclass(frozen=True)
class WireBytes:
    """Hold payload bytes that one worker handed to collectives.

    Attributes:
        trained: gradients, weights, losses: everything that does not hold frozen values.
        frozen: bytes that hold values of the bank, found while the meter looks inside.
    """

    trained: int = 0
    frozen: int = 0


class FrozenValues:
    """Recognise the values of frozen tensors in whatever is sent, by the signs of 64 neighbours.

    A copy, a cast, a scale, a part, or several put together keep signs and neighbours: whoever holds frozen matrices as
    parameters, on a GPU or partitioned, is found out. Not known are tensors of fewer than 64 values, and those without
    signs, as the order of a ring.

    Cost: of the bank, once, 64 passes over 2^20 values at most; of a payload 3 passes and a search for every 64 values.

    Args:
        tensors: of the bank.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        tensors = [tensor.detach().flatten().cpu() for tensor in tensors if tensor.numel() >= _WINDOW]
        total = sum(len(tensor) for tensor in tensors)
        self.share = min(_MOST_VALUES / total, 1.0) if total else 1.0
        """Of the bank's values, how many are known."""
        generator = torch.Generator("cpu").manual_seed(0)
        self._weights = torch.randint(-(2**62), 2**62, (_WINDOW,), generator=generator, device="cpu")
        found = [self._of_every_window(piece) for tensor in tensors for piece in self._sample(tensor)]
        self._known = torch.cat(found).unique() if found else torch.empty(0, dtype=torch.int64)

    def _sample(self, tensor: Tensor) -> Iterator[Tensor]:
        if self.share == 1.0 or len(tensor) <= _PIECE:
            yield tensor
            return
        count = max(round(len(tensor) * self.share / _PIECE), 1)
        for start in torch.linspace(0, len(tensor) - _PIECE, count).long().tolist():
            yield tensor[start : start + _PIECE]

    def _of_every_window(self, values: Tensor) -> Tensor:
        """Return a number for every 64 neighbours that have enough signs of both kinds."""
        signs, count = values.sign().to(torch.int64), len(values) - _WINDOW + 1
        sums, nonzero, balance = (torch.zeros(count, dtype=torch.int64) for _ in range(3))
        for place, weight in enumerate(self._weights.tolist()):
            part = signs[place : place + count]
            sums += part * weight
            nonzero += part.abs()
            balance += part
        return sums[(nonzero >= _LEAST_NONZERO) & (balance.abs() < nonzero)]

    @torch.no_grad()
    def bytes_in(self, payload: Tensor) -> int:
        """Return how many bytes of a tensor hold frozen values, in stretches of 64; synchronises a GPU."""
        if not len(self._known) or payload.dtype == torch.bool or payload.is_complex():
            return 0
        flat = payload.detach().flatten()
        rows = flat[: len(flat) // _WINDOW * _WINDOW].view(-1, _WINDOW)
        known, weights, hits = self._known.to(flat.device), self._weights.to(flat.device), 0
        for part in rows.split(_MOST_VALUES // _WINDOW):
            sums = (part.sign().to(torch.int64) * weights).sum(1)
            place = torch.searchsorted(known, sums).clamp_(max=len(known) - 1)
            hits += int((known[place] == sums).sum())
        return hits * _WINDOW * flat.element_size()


class WireMeter:
    """Count what passes through torch.distributed in this process while `installed`.

    A payload counts once per call, whatever the collective's algorithm moves between machines. Objects that are pickled
    (digests, at start and at checkpoints) go through `broadcast` and `all_gather` as bytes and count as trained.

    Args:
        frozen: tensors of the bank; of a model that is under training already what they were will do.
    """

    def __init__(self, frozen: Iterable[Tensor]) -> None:
        self._frozen = FrozenValues(frozen)
        self._trained_bytes = self._frozen_bytes = 0
        self.looks_inside = False
        """Whether payloads are searched for frozen values: that takes some time, so not in every step."""

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
            frozen = self._frozen.bytes_in(payload) if self.looks_inside else 0
            self._frozen_bytes += frozen
            self._trained_bytes += payload.numel() * payload.element_size() - frozen
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
