"""Bytes are counted per operation: torch's and the compiled ones."""

import pytest
import torch

from rcdist.benchmark.traffic import TrafficCounter, measure_traffic
from rcdist.config import ModelConfig, ReservoirConfig
from rcdist.ops import native
from rcdist.ops.backend import forced
from rcdist.ops.scan import gated_scan


def test_counts_what_an_operation_of_torch_reads_and_writes() -> None:
    x, y = torch.ones(6, 4), torch.ones(6, 4)
    with TrafficCounter() as counter:
        (x.t()[1:] + y.t()[1:]).t()
    assert counter.moved == {"add": 3 * 18 * 4}


def test_counts_a_broadcast_tensor_once() -> None:
    row = torch.ones(1).expand(1000)
    with TrafficCounter() as counter:
        row.mul(2.0)
    assert counter.moved == {"mul": 4 + 4000}


@pytest.mark.skipif(not native.is_available(), reason="no C++ compiler")
def test_counts_a_compiled_operation() -> None:
    batch, time, width = 2, 5, 16
    pf, pc = torch.randn(2, batch, time, width)
    with forced("cpu"), TrafficCounter() as counter:
        gated_scan(pf, pc, torch.zeros(width))
    # Two inputs and the states, the bounds, the last states.
    assert counter.moved["scan_forward"] == 4 * (3 * batch * time * width + width + batch * width)
    assert not native.observers


@pytest.mark.skipif(not native.is_available(), reason="no C++ compiler")
def test_a_fused_block_moves_a_fraction_of_the_ports_bytes() -> None:
    model = ModelConfig(num_layers=1, width=64, glu_width=192, vocab_size=64)
    found = measure_traffic(model, 2, 64, ReservoirConfig(plan="cG@a", topology="hadamard"))
    assert found["T"]["over_port"] < 0.25
    assert found["cG@a"]["over_port"] < found["T"]["over_port"]
