"""The wire meter: payloads by hand, frozen ones told apart, nested collectives counted once."""

import math

import pytest
import torch
import torch.distributed as dist

from rcdist.train import wire as module
from rcdist.train.wire import FrozenValues, WireBytes, WireMeter

pytestmark = pytest.mark.usefixtures("one_rank")


def frozen_matrix(rows: int = 40, columns: int = 50, connectivity: float = 0.6) -> torch.Tensor:
    """Return a ternary matrix."""
    signs = torch.randint(0, 2, (rows, columns), dtype=torch.int8) * 2 - 1
    return signs * (torch.rand(rows, columns) < connectivity)


def test_payloads_are_counted() -> None:
    wire = WireMeter([])
    with wire.installed():
        dist.all_reduce(torch.ones(10))
        dist.broadcast(tensor=torch.ones(3, dtype=torch.float64), src=0)
        assert wire.take() == WireBytes(trained=40 + 24)
        dist.all_gather([torch.empty(5)], torch.ones(5))
        assert wire.take() == WireBytes(trained=20)
        assert wire.take() == WireBytes()


def test_frozen_values_are_found_whatever_became_of_the_tensor() -> None:
    matrix = frozen_matrix()
    trained = torch.randn(3000)
    wire = WireMeter([matrix])
    sent = {
        "itself": matrix,
        "a copy": matrix.clone(),
        "cast and scaled": matrix.bfloat16() * 0.03,
        "a parameter": torch.nn.Parameter(matrix.float() * -0.0 + matrix.float() * 2, requires_grad=False).data,
        "the second half": matrix.flatten()[1000:].float().clone(),
        "among others": torch.cat([trained, matrix.flatten().float(), trained]),
    }
    with wire.installed():
        wire.looks_inside = True
        for what, payload in sent.items():
            dist.all_reduce(payload.clone())
            found, held = wire.take(), 1000 if "half" in what else 2000
            size = payload.element_size()
            assert (held - 128) * size <= found.frozen <= held * size, what
            assert found.trained + found.frozen == payload.numel() * size
        wire.looks_inside = False
        dist.all_reduce(matrix.clone())
        assert wire.take() == WireBytes(trained=2000)


def test_nothing_else_is_taken_for_frozen() -> None:
    wire = WireMeter([frozen_matrix(), frozen_matrix(connectivity=0.05), torch.arange(500), torch.ones(200)])
    others = [
        torch.randn(100_000),
        torch.zeros(5000),
        torch.ones(5000),
        -torch.ones(5000),
        torch.full((300,), math.nan),
    ]
    others += [frozen_matrix(), torch.arange(5000), torch.ones(100, dtype=torch.bool), torch.empty(0)]
    with wire.installed():
        wire.looks_inside = True
        for payload in others:
            dist.all_gather([payload.clone()], payload)
            assert wire.take().frozen == 0


def test_of_a_large_bank_a_sample_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_VALUES", 40_000)
    matrix = frozen_matrix(400, 400)
    values = FrozenValues([matrix])
    assert values.share == 0.25
    assert 0.2 * 160_000 < values.bytes_in(matrix) < 0.27 * 160_000


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
