"""Sequential recurrences against autograd over their equations, and gradcheck in float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rcdist.config import Architecture, ModelConfig, ReservoirConfig
from rcdist.model.reservoir import build_bank
from rcdist.ops.recurrence import echo_scan, reset_scan
from rcdist.ops.topology import LinearMap

WIDTH, SCALE = 16, 0.6


def matrix(topology: str) -> LinearMap:
    config = ReservoirConfig(plan="T+r@a", topology=topology, block_size=8)
    return build_bank(Architecture(ModelConfig(num_layers=1, width=WIDTH), config)).linear_map("r@a")


def equations(
    f: Tensor, p: Tensor, inject: Callable[[int, Tensor], Tensor], h0: Tensor | None, starts: Tensor | None
) -> tuple[Tensor, Tensor]:
    h = torch.zeros_like(p[:, 0]) if h0 is None else h0
    states = []
    for t in range(p.shape[1]):
        if starts is not None:
            h = h * (~starts[:, t]).to(h.dtype).unsqueeze(-1)
        c = F.silu(p[:, t] + inject(t, h))
        h = f[:, t] * h + (1 - f[:, t]) * c
        states.append(h)
    return torch.stack(states, 1), h


def inputs(dtype: torch.dtype, time: int = 9) -> dict[str, Tensor]:
    made = {"f": torch.rand(3, time, WIDTH, dtype=dtype), "p": torch.randn(3, time, WIDTH, dtype=dtype)}
    made |= {"r": torch.rand(3, time, WIDTH, dtype=dtype), "gain": torch.rand(WIDTH, dtype=dtype) + 0.5}
    made |= {"h0": torch.randn(3, WIDTH, dtype=dtype)}
    return {name: tensor.requires_grad_() for name, tensor in made.items()}


@pytest.mark.parametrize("topology", ["dense", "block", "hadamard", "ring", "reset"])
@pytest.mark.parametrize("has_state", [True, False])
@pytest.mark.parametrize("has_starts", [True, False])
@pytest.mark.parametrize("time", [1, 9])
def test_equals_the_equations(topology: str, has_state: bool, has_starts: bool, time: int) -> None:
    x = inputs(torch.float32, time)
    starts = torch.rand(3, time) < 0.3 if has_starts else None
    h0 = x["h0"] if has_state else None
    if topology == "reset":
        found = reset_scan(x["f"], x["p"], x["r"], h0, starts)
        expected = equations(x["f"], x["p"], lambda t, h: x["r"][:, t] * h, h0, starts)
        leaves = [x["f"], x["p"], x["r"]]
    else:
        a = matrix(topology)
        table = a.times(torch.eye(WIDTH)).t()
        found = echo_scan(x["f"], x["p"], a, SCALE, x["gain"], h0, starts)
        expected = equations(x["f"], x["p"], lambda t, h: h @ table.t() * SCALE * x["gain"], h0, starts)
        leaves = [x["f"], x["p"], x["gain"]]
    leaves += [x["h0"]] if has_state else []
    weights = (torch.randn(3, time, WIDTH), torch.randn(3, WIDTH))
    grads = [torch.autograd.grad(result, leaves, weights) for result in (found, expected)]
    for a_found, b_expected in zip((*found, *grads[0]), (*expected, *grads[1]), strict=True):
        torch.testing.assert_close(a_found, b_expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("topology", ["dense", "hadamard"])
def test_gradcheck(topology: str) -> None:
    x, a = inputs(torch.float64, 4), matrix(topology)
    starts = torch.zeros(3, 4, dtype=torch.bool)
    starts[1, 2] = True
    assert torch.autograd.gradcheck(
        lambda f, p, gain, h0: echo_scan(f, p, a, SCALE, gain, h0, starts), (x["f"], x["p"], x["gain"], x["h0"])
    )
    assert torch.autograd.gradcheck(
        lambda f, p, r, h0: reset_scan(f, p, r, h0, starts), (x["f"], x["p"], x["r"], x["h0"])
    )


def test_without_gain_and_in_bfloat16() -> None:
    x, a = inputs(torch.float32), matrix("dense")
    plain, last = echo_scan(x["f"], x["p"], a, SCALE)
    torch.testing.assert_close(plain, echo_scan(x["f"], x["p"], a, SCALE, torch.ones(WIDTH))[0])
    assert torch.equal(plain[:, -1], last)
    low, low_last = echo_scan(x["f"], x["p"].bfloat16(), a, SCALE, x["gain"].bfloat16())
    assert (low.dtype, low_last.dtype) == (torch.bfloat16, torch.float32)


def test_a_fixed_leak_may_be_an_expanded_number() -> None:
    x = inputs(torch.float32)
    leak = torch.full((), 0.7)
    for run in (
        lambda f: echo_scan(f, x["p"], matrix("ring"), SCALE)[0],
        lambda f: reset_scan(f, x["p"], x["r"])[0],
    ):
        assert torch.equal(run(leak.expand(3, 9, WIDTH)), run(torch.full((3, 9, WIDTH), 0.7)))
