"""Compare a fused backend with the reference: results and every gradient, of one operation on the same inputs."""

import platform
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from rcdist.ops.backend import Choice, forced
from rcdist.ops.quantise import Quantised

X86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="limits are to instructions of x86-64")

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}
"""Largest difference relative to the largest value: sums in another order; bfloat16 keeps 8 bits."""


def compare(
    backend: Choice, run: Callable[[], Sequence[Tensor]], leaves: Sequence[Tensor], dtype: torch.dtype
) -> list[tuple[Tensor, ...]]:
    """Run an operation with the reference and with a backend, and compare outputs and gradients of the leaves.

    Returns:
        The outputs of both.
    """
    found = []
    for choice in ("reference", backend):
        with forced(choice):  # type: ignore[arg-type]
            outputs = tuple(run())
            generator = torch.Generator("cpu").manual_seed(7)
            weights = [torch.randn(output.shape, generator=generator, device="cpu").to(output) for output in outputs]
            gradients = torch.autograd.grad(outputs, leaves, weights)
        found.append((outputs, gradients))
    (reference, expected), (fused, gradients) = found
    for i, (a, b) in enumerate(zip(gradients, expected, strict=True)):
        assert a.shape == b.shape and a.dtype == b.dtype
        assert_near(a, b, TOLERANCE[dtype], f"gradient {i}")
    return [reference, fused]


def assert_near(found: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    """Assert that no value is off by more than `tolerance` times the largest one."""
    assert found.isfinite().all(), what
    difference = float((found.detach().double() - expected.detach().double()).abs().max())
    assert difference <= tolerance * max(float(expected.detach().double().abs().max()), 1e-3), f"{what}: {difference}"


def assert_same_codes(found: Quantised, expected: Quantised, dtype: torch.dtype) -> None:
    """Assert that int8 codes differ by one at most, and seldom: a value on the edge may round either way."""
    difference = (found.values.int() - expected.values.int()).abs()
    assert int(difference.max()) <= (1 if dtype == torch.float32 else 2)
    assert float((difference > 0).float().mean()) <= (0.002 if dtype == torch.float32 else 0.3)
    assert found.scale is not None and expected.scale is not None
    assert found.scale.shape == expected.scale.shape
    assert_near(found.scale, expected.scale, 1e-6 if dtype == torch.float32 else 1e-2, "scale")
