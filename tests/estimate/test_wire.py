"""Bytes on the wire: what is estimated is what real processes hand to collectives, to the byte."""

from collections.abc import Iterator

import pytest
import torch.multiprocessing as mp

from rcdist.cluster import Workers
from rcdist.estimate.wire import estimate_wire
from rcdist.model.cost import count_parameters
from rcdist.ports import free_ports
from tests.estimate.wire_worker import CASES, WORLD_SIZE, job, run_rank

WORKERS = Workers(WORLD_SIZE, False, 1.0)


@pytest.fixture(scope="module")
def measured() -> Iterator[dict]:
    with mp.get_context("spawn").Manager() as manager:
        results = manager.dict()
        mp.spawn(run_rank, args=(free_ports(1)[0], results), nprocs=WORLD_SIZE)
        yield dict(results)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_estimate_is_what_is_sent(measured: dict, case: tuple[str, int, str, int]) -> None:
    assert estimate_wire(job(*case), WORKERS) == measured[case]


def test_a_partition_is_rounded_up() -> None:
    config = job("T", 1, "fp32", 8)
    trained = count_parameters(config.architecture).trained
    # 148,416 numbers in two groups, cut into 5 parts each of an even size.
    assert trained == 148_416
    assert 4 * trained * 1.2 < estimate_wire(config, Workers(5, False, 1.0)) - 56 < 4 * (trained * 1.2 + 5)
