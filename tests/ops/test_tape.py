"""A tape does the work again on the same tensors; work that reads values on the host is called again instead."""

import pytest
import torch
from torch import Tensor

from rcdist.ops.norm import add_norm_quantise
from rcdist.ops.tape import Tape


class Work:
    """Compute something from x in torch and in compiled kernels, and add to a total in place."""

    def __init__(self) -> None:
        self.x, self.total, self.out = torch.randn(2, 24), torch.zeros(2, 24), torch.zeros(2, 24)
        self.gain = torch.rand(24)

    def do(self) -> None:
        constant = self.gain.softmax(0).cumsum(0)  # from nothing that changes
        _, z = add_norm_quantise(self.x, self.total, self.gain, 1e-6)
        assert z.scale is not None
        y = torch.stack([z.values * z.scale, self.x.flip(0)])[0].t().contiguous().t()
        self.total += y * constant
        self.out.copy_(self.total.view(24, 2).reshape(2, 24).expand(2, 24) + 1)


def test_runs_from_the_tape_are_what_calls_would_be() -> None:
    taped, called = Work(), Work()
    called.__dict__ |= {name: tensor.clone() for name, tensor in vars(taped).items()}
    tape = Tape(taped.do, [taped.x, taped.total, taped.out])
    called.do()
    for _ in range(4):
        for work in (taped, called):
            work.x.copy_(torch.randn(2, 24, generator=torch.Generator().manual_seed(5)))
        taped.x.mul_(2)
        called.x.mul_(2)
        tape.run()
        called.do()
        assert torch.equal(taped.total, called.total) and torch.equal(taped.out, called.out)
    assert tape.is_complete
    assert tape.num_steps == 9  # without softmax and cumsum, views and empty tensors


@pytest.mark.parametrize("reads", [lambda x: float(x.sum()), lambda x: bool((x > 0).all()), lambda x: x.nonzero()])
def test_work_that_reads_values_is_called_again(reads: object) -> None:
    x, out = torch.ones(3), torch.zeros(3)
    calls = []

    def work() -> None:
        calls.append(1)
        value = reads(x)  # type: ignore[operator]
        out.copy_(torch.full((3,), float(value.numel() if isinstance(value, Tensor) else value)))

    tape = Tape(work, [x, out])
    assert not tape.is_complete
    tape.run()
    assert len(calls) == 2


def test_what_was_taken_for_constant_and_is_written_to_after_all_is_noticed() -> None:
    x, hidden, out = torch.ones(3), torch.ones(3), torch.zeros(3)

    def work() -> None:
        out.copy_(hidden * 2 + x)
        hidden.add_(x)

    tape = Tape(work, [x, out])
    for expected in (6.0, 8.0):
        tape.run()
        assert out.tolist() == [expected - 1] * 3
