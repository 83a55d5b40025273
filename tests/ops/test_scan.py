"""The fast scan equals the reference loop: forward, every gradient, odd sizes, starts, and resumption."""

import pytest
import torch
from torch import Tensor

from rcdist.ops.scan import scan


def scan_step_by_step(
    f_BTH: Tensor, c_BTH: Tensor, h0_BH: Tensor | None = None, starts_BT: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Run the recurrence of `scan` step by step, differentiated by autograd."""
    wide = torch.promote_types(torch.promote_types(f_BTH.dtype, c_BTH.dtype), torch.float32)
    f, c = f_BTH.to(wide), c_BTH.to(wide)
    h = torch.zeros_like(c[:, 0]) if h0_BH is None else h0_BH.to(wide)
    states = []
    for t in range(f.shape[1]):
        if starts_BT is not None:
            h = h * (~starts_BT[:, t]).to(wide).unsqueeze(-1)
        h = f[:, t] * h + (1 - f[:, t]) * c[:, t]
        states.append(h)
    return torch.stack(states, dim=1).to(c_BTH.dtype), h


def inputs(batch: int, time: int, width: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    f = torch.rand(batch, time, width, dtype=dtype)
    c = torch.randn(batch, time, width, dtype=dtype)
    h0 = torch.randn(batch, width, dtype=dtype)
    return [f.requires_grad_(), c.requires_grad_(), h0.requires_grad_()]


def test_hand_numbers() -> None:
    f = torch.tensor([0.5, 0.25, 1.0, 0.5]).view(1, 4, 1)
    c = torch.tensor([2.0, 4.0, 9.0, 1.0]).view(1, 4, 1)
    h, last = scan(f, c)
    assert h.flatten().tolist() == [1.0, 3.25, 3.25, 2.125]
    assert last.tolist() == [[2.125]]
    # A start sets h before it to 0 and leaves the gate as it is.
    h, _ = scan(f, c, torch.tensor([[100.0]]), torch.tensor([[True, False, False, True]]))
    assert h.flatten().tolist() == [1.0, 3.25, 3.25, 0.5]


@pytest.mark.parametrize("with_h0", [False, True])
@pytest.mark.parametrize("with_starts", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 63, 5), (3, 257, 33)])
def test_equals_reference(shape: tuple[int, int, int], with_h0: bool, with_starts: bool) -> None:
    f, c, h0 = inputs(*shape)
    starts = torch.rand(shape[:2]) < 0.2 if with_starts else None
    wrt = [f, c, h0] if with_h0 else [f, c]
    dh, dlast = torch.randn(shape), torch.randn(shape[0], shape[2])
    results = []
    for run in (scan, scan_step_by_step):
        h, last = run(f, c, h0 if with_h0 else None, starts)
        results.append((h, last, *torch.autograd.grad((h, last), wrt, (dh, dlast))))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("with_starts", [False, True])
def test_gradients_are_the_numerical_ones(with_starts: bool) -> None:
    starts = torch.tensor([[False, True, False, False, True], [True, False, False, False, False]])
    run = [lambda f, c, h0: scan(f, c, h0), lambda f, c, h0: scan(f, c, h0, starts)][with_starts]
    assert torch.autograd.gradcheck(run, inputs(2, 5, 3, torch.float64))


def test_each_output_alone_has_its_gradient() -> None:
    f, c, h0 = inputs(2, 6, 3)
    for which in (0, 1):
        found = torch.autograd.grad(scan(f, c, h0)[which].sum(), (f, c, h0))
        expected = torch.autograd.grad(scan_step_by_step(f, c, h0)[which].sum(), (f, c, h0))
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)


def test_strided_inputs() -> None:
    f, c = torch.rand(4, 9, 6).transpose(0, 1), torch.randn(6, 9, 4).transpose(0, 2)
    f = f.transpose(0, 1)
    for found, expected in zip(scan(f, c), scan_step_by_step(f, c), strict=True):
        torch.testing.assert_close(found, expected)


def test_the_last_state_resumes_the_sequence_exactly() -> None:
    f, c, h0 = inputs(2, 40, 7)
    whole, last = scan(f, c, h0)
    first, between = scan(f[:, :17], c[:, :17], h0)
    second, resumed_last = scan(f[:, 17:], c[:, 17:], between)
    assert torch.equal(torch.cat([first, second], 1), whole)
    assert torch.equal(resumed_last, last)


def test_a_start_cuts_the_gradient() -> None:
    f, c, h0 = inputs(1, 4, 2)
    starts = torch.tensor([[False, False, True, False]])
    df, dc, dh0 = torch.autograd.grad(scan(f, c, h0, starts)[0][:, 2:].sum(), (f, c, h0))
    assert dh0.abs().max() == 0
    assert dc[:, :2].abs().max() == 0
    torch.testing.assert_close(df[:, 2], -c[:, 2] * (1 + f[:, 3]))


def test_the_state_is_float32_under_bfloat16() -> None:
    f, c, _ = inputs(2, 300, 5)
    f, c = (f * 0.01 + 0.99).detach(), c.detach().bfloat16()
    h, last = scan(f, c)
    assert (h.dtype, last.dtype) == (torch.bfloat16, torch.float32)
    expected, expected_last = scan_step_by_step(f, c.float())
    torch.testing.assert_close(last, expected_last)
    assert torch.equal(h, expected.bfloat16()) or (h - expected).abs().max() <= 2**-8 * expected.abs().max()
