"""Bytes on the wire: what is estimated is what real processes hand to collectives, to the byte."""

import pytest

from rcdist.cluster import Workers
from rcdist.config.cli import read_config
from rcdist.estimate.wire import estimate_exchange
from rcdist.model.cost import count_parameters
from tests.conftest import ROOT
from tests.estimate.wire_worker import CASES, WORLD_SIZE, job, measure
from tests.processes import run_group

WORKERS = Workers(WORLD_SIZE, False, 1.0)


@pytest.fixture(scope="module")
def measured() -> dict[tuple[str, int, str, int, str], int]:
    return run_group(measure, WORLD_SIZE)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_estimate_is_what_is_sent(measured: dict, case: tuple[str, int, str, int, str]) -> None:
    assert estimate_exchange(job(*case), WORKERS).handed_bytes == measured[case]


def test_a_partition_is_rounded_up() -> None:
    config = job("T", 1, "fp32", 8)
    trained = count_parameters(config.architecture).trained
    # 148,416 numbers in two groups, cut into 5 parts each of an even size.
    assert trained == 148_416
    assert (
        4 * trained * 1.2
        < estimate_exchange(config, Workers(5, False, 1.0)).handed_bytes - 56
        < 4 * (trained * 1.2 + 5)
    )


def test_a_large_model_at_stage_3_hands_over_what_gpus_did() -> None:
    # Two H200s, 64 windows a worker in four micro-batches: rcdist/benchmark/README.md, Scaling.
    for count, measured in ((1, 2_992_865_344), (2, 4_488_425_536)):
        arguments = ["--config=370m", "--train.zero_stage=3", "--train.micro_batch_size=16"]
        arguments.append(f"--train.global_batch_tokens={count * 64 * 2048}")
        config = read_config(arguments, "test", presets=ROOT / "jobs" / "configs")
        assert estimate_exchange(config, Workers(count, True, 1.0)).handed_bytes == measured
