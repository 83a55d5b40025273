"""Faults with real processes: workers, nodes, drivers, disks and servers that break; all of them where exhaustive."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from rcdist.chaos.faults import FAULTS
from rcdist.chaos.suite import Suite, local_cluster
from rcdist.config import JobConfig

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    with local_cluster() as cluster:
        yield Suite(tmp_path_factory.mktemp("chaos"), [], cluster)


@pytest.fixture(scope="module")
def unbroken(suite: Suite) -> tuple[JobConfig, Path]:
    return suite.run_unbroken()


SOME = ("kill-saving", "shrunk", "driver-kill", "disk-full")
"""A worker, a node and a driver are lost, a run is resized, a storage is full: what no smaller test can prove."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in SOME else pytest.mark.exhaustive) for name in FAULTS]
)
def test_a_run_survives(name: str, suite: Suite, unbroken: tuple[JobConfig, Path]) -> None:
    verdict = suite.run_fault(name, 1, *unbroken)
    if any("cannot be tried here" in failure for failure in verdict.failures):
        pytest.skip(verdict.failures[0])
    assert not verdict.failures, "\n".join(verdict.failures)
