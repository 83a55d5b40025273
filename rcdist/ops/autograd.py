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
    return _zero(like.dtype, like.device).expand(like.shape)


@cache
def _zero(dtype: torch.dtype, device: torch.device) -> Tensor:
    # Made once: on a GPU, filling one element costs a launch.
    return torch.zeros(1, dtype=dtype, device=device)
