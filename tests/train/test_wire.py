"""The wire meter: payloads by hand, frozen ones told apart, nested collectives counted once."""

import pytest
import torch
import torch.distributed as dist

from rcdist.train.wire import WireBytes, WireMeter

pytestmark = pytest.mark.usefixtures("one_rank")


def test_payloads_are_counted_and_frozen_ones_apart() -> None:
    bank = torch.ones(6, dtype=torch.int8)
    wire = WireMeter([bank])
    with wire.installed():
        dist.all_reduce(torch.ones(10))
        dist.broadcast(tensor=torch.ones(3, dtype=torch.float64), src=0)
        assert wire.take() == WireBytes(trained=40 + 24)
        dist.all_gather([torch.empty(5)], torch.ones(5))
        dist.all_reduce(bank[2:5])
        assert wire.take() == WireBytes(trained=20, frozen=3)
        assert wire.take() == WireBytes()


def test_a_list_counts_every_tensor() -> None:
    wire = WireMeter([])
    with wire.installed():
        dist.reduce_scatter(torch.empty(4), [torch.ones(4)])
    assert wire.take() == WireBytes(trained=16)


def test_a_collective_inside_another_counts_once() -> None:
    wire = WireMeter([])
    with wire.installed():
        dist.all_gather_into_tensor(torch.empty(8), torch.ones(8))
    assert wire.take() == WireBytes(trained=32)


def test_meters_take_turns_and_nothing_is_counted_outside() -> None:
    first, second = WireMeter([]), WireMeter([])
    with first.installed():
        kept = dist.all_reduce  # as DeepSpeed does
        kept(torch.ones(1))
    kept(torch.ones(100))
    with second.installed():
        kept(torch.ones(2))
    assert (first.take(), second.take()) == (WireBytes(trained=4), WireBytes(trained=8))
