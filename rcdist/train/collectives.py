"""Exchange Python objects between the ranks."""

from typing import Any

import torch.distributed as dist


def broadcast_object(value: Any) -> Any:
    """Return rank 0's value on every rank; a collective call."""
    held = [value]
    dist.broadcast_object_list(held)
    return held[0]


def gather_objects(value: Any) -> list[Any]:
    """Return every rank's value, in the order of the ranks; a collective call."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
