"""Factors of channels that an operation applies to what it reads: so the gain of a frozen matrix costs nothing."""

# Shapes: D channels, ... any leading dimensions.

from torch import Tensor

from rcdist.ops.backend import backend_of


def takes_factors(x: Tensor) -> bool:
    """Say whether scan, GLU and readout of tensors like x multiply by factors inside their kernels: Triton's do.

    The product of a frozen matrix then leaves its gain to them, and has neither to write what the gain multiplied nor
    to read it again for the gain's gradient.
    """
    return backend_of(x) == "triton"


def scaled(x: Tensor, factor_D: Tensor | None) -> Tensor:
    """Return x times a factor of each channel, in the dtype of x; x itself without one."""
    return x if factor_D is None else (x * factor_D).to(x.dtype)
