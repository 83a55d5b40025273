"""Call an operation with its own backward pass, and save what that needs only where a gradient may be asked for."""

from functools import cache
from typing import Any

import torch
from torch import Tensor


class _NothingKept:
    """Stand for autograd's context where no backward pass follows."""

    def save_for_backward(self, *_: object) -> None: ...
    def mark_non_differentiable(self, *_: object) -> None: ...
    def set_materialize_grads(self, value: bool) -> None: ...


def apply(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    """Return function.apply(*arguments); under torch.no_grad without autograd's part."""
    if torch.is_grad_enabled():
        return function.apply(*arguments)
    return function.forward(_NothingKept(), *arguments)


def hollow(like: Tensor) -> Tensor:
    """Return a tensor of the shape and dtype that holds one element: it only carries a gradient."""
    return constant(0.0, like.dtype, like.device).expand(like.shape)


@cache
def constant(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a tensor of one element, made once: on a GPU, filling it costs a launch."""
    return torch.full((1,), value, dtype=dtype, device=device)
