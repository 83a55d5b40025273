"""Exchange Python objects between the ranks."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

Value = TypeVar("Value")


def broadcast_object(value: Any) -> Any:
    """Return rank 0's value on every rank; a collective call."""
    held = [value]
    dist.broadcast_object_list(held)
    return held[0]


def from_first_rank(call: Callable[[], Value]) -> Value:
    """Call on rank 0 alone and return its value on every rank; what it raises, every rank raises. A collective call."""
    value: Any = None
    failure: Exception | None = None
    if dist.get_rank() == 0:
        try:
            value = call()
        except Exception as error:
            failure = error
    value, failure = broadcast_object((value, failure))
    if failure is not None:
        raise failure
    return value


def gather_objects(value: Any) -> list[Any]:
    """Return every rank's value, in the order of the ranks; a collective call."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
