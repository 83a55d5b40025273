"""Faults with real processes: workers, nodes, drivers, disks and servers that break; all of them where exhaustive."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from rcdist.chaos.faults import FAULTS
from rcdist.chaos.runner import Runner, list_faults, local_cluster
from rcdist.config import JobConfig
from tests.conftest import ROOT

SLOW = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    with local_cluster() as cluster:
        yield Runner(ROOT / "jobs" / "pretrain.py", tmp_path_factory.mktemp("chaos"), [], cluster)


@pytest.fixture(scope="module")
def unbroken(runner: Runner) -> tuple[JobConfig, Path]:
    return runner.run_unbroken()


SOME = ("shrunk", "driver-kill", "disk-full")
"""A node with its worker and a driver are lost, a run is resized, a storage is full: what no smaller test can prove."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=SLOW if name in SOME else [*SLOW, pytest.mark.exhaustive]) for name in FAULTS]
)
def test_a_run_survives(name: str, runner: Runner, unbroken: tuple[JobConfig, Path]) -> None:
    verdict = runner.run_fault(name, 1, *unbroken)
    if any("cannot be tried here" in failure for failure in verdict.failures):
        pytest.skip(verdict.failures[0])
    assert not verdict.failures, "\n".join(verdict.failures)


def test_readme_has_the_table_of_all_faults() -> None:
    assert list_faults() in (ROOT / "rcdist" / "chaos" / "README.md").read_text()
