"""Gradients of several micro-batches, summed in float32 in one buffer per optimizer group, and exchanged once."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Layout:
    """Say where in a flat buffer each parameter of an optimizer group lies.

    Attributes:
        parameters: of the group.
        offsets: first element of each.
        size: elements of the buffer, a multiple of the number of workers.
    """

    parameters: Sequence[nn.Parameter]
    offsets: Sequence[int]
    size: int


def plain_layouts(groups: Sequence[dict[str, Any]]) -> list[Layout]:
    """Lay each group's parameters one after the other."""
    layouts = []
    for group in groups:
        *offsets, size = itertools.accumulate((p.numel() for p in group["params"]), initial=0)
        layouts.append(Layout(group["params"], offsets, size))
    return layouts


def zero_layouts(optimizer: Any) -> list[Layout]:
    """Lay each group's parameters as DeepSpeed's optimizer of stages 1 and 2 partitions them."""
    groups = zip(
        optimizer.round_robin_bit16_groups,
        optimizer.round_robin_bit16_offsets,
        optimizer.bit16_groups_flat,
        strict=True,
    )
    return [Layout(parameters, offsets, flat.numel()) for parameters, offsets, flat in groups]


class FlatGradients:
    """Sum gradients in float32 buffers that stay where they are: 4 bytes per trained weight on every worker.

    Args:
        layouts: of the optimizer's groups.
        device: of the buffers.
    """

    def __init__(self, layouts: Sequence[Layout], device: torch.device) -> None:
        self._layouts = layouts
        self._flats = [torch.zeros(layout.size, device=device) for layout in layouts]
        self.parameters = [p for layout in layouts for p in layout.parameters]
        self._views = [view for layout, flat in zip(layouts, self._flats, strict=True) for view in _views(layout, flat)]

    def clear(self) -> None:
        """Start a new sum."""
        for flat in self._flats:
            flat.zero_()

    def add(self, gradients: Sequence[Tensor | None]) -> None:
        """Add the gradient of each parameter, in the order of `parameters`; None: it has none."""
        for view, gradient in zip(self._views, gradients, strict=True):
            if gradient is not None:
                view.add_(gradient)

    def share_out(self, dtype: torch.dtype, world_size: int) -> list[Tensor]:
        """Sum over the workers, and return this one's part of each group in float32.

        Args:
            dtype: in which gradients travel.
            world_size: workers; alone, nothing travels and nothing is rounded.
        """
        if world_size == 1:
            return self._flats
        parts = []
        for flat in self._flats:
            part = torch.empty(flat.numel() // world_size, dtype=dtype, device=flat.device)
            dist.reduce_scatter_tensor(part, flat.to(dtype))
            parts.append(part.float())
        return parts

    def sum_over_workers(self, dtype: torch.dtype, world_size: int) -> list[Tensor]:
        """Sum over the workers, and return all of each group, in float32."""
        if world_size > 1:
            for flat in self._flats:
                travelling = flat.to(dtype)
                dist.all_reduce(travelling)
                flat.copy_(travelling)
        return self._flats

    def hand_over(self) -> None:
        """Make the sums the gradients of the parameters, in their dtype."""
        for layout, flat in zip(self._layouts, self._flats, strict=True):
            views = _views(layout, flat.to(layout.parameters[0].dtype)) if layout.parameters else []
            for parameter, view in zip(layout.parameters, views, strict=True):
                parameter.grad = view


def _views(layout: Layout, flat: Tensor) -> list[Tensor]:
    pairs = zip(layout.parameters, layout.offsets, strict=True)
    return [flat[offset : offset + p.numel()].view(p.shape) for p, offset in pairs]
