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


_SMALL = 2**16
"""Elements below which a launch takes longer than the addition."""


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
        self._runs = [run for layout, flat in zip(layouts, self._flats, strict=True) for run in _runs(layout, flat)]

    def clear(self) -> None:
        """Start a new sum."""
        for flat in self._flats:
            flat.zero_()

    def add(self, gradients: Sequence[Tensor | None]) -> None:
        """Add the gradient of each parameter, in the order of `parameters`; None: it has none."""
        left = iter(gradients)
        for views in self._runs:
            parts = list(itertools.islice(left, len(views)))
            whole = [part for part in parts if part is not None]
            if len(views) > 1 and len(whole) == len(views):
                # Neighbours in memory, and so small that one addition for all is faster.
                size = sum(view.numel() for view in views)
                sums = views[0].as_strided((size,), (1,))
                sums.add_(torch.cat([part.flatten() for part in whole]))
                continue
            for view, part in zip(views, parts, strict=True):
                if part is not None:
                    view.add_(part)

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


def _runs(layout: Layout, flat: Tensor) -> list[list[Tensor]]:
    """Group the views of small parameters that follow one another without a gap; the others stand alone."""
    runs: list[list[Tensor]] = []
    end = -1
    for view, offset in zip(_views(layout, flat), layout.offsets, strict=True):
        is_small = view.numel() <= _SMALL
        if is_small and offset == end:
            runs[-1].append(view)
        else:
            runs.append([view])
        end = offset + view.numel() if is_small else -1
    return runs
