"""A checkpoint of two processes goes on with 1, 3 and 4 at every ZeRO stage, and again with two; real gloo groups."""

import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoint.resize_worker import run_each
from tests.processes import run_group
from tests.train.conftest import names
from tests.train.zero_worker import job

pytestmark = pytest.mark.slow

EVERY = [f"{precision}-{stage}" for precision in ("fp32", "bf16") for stage in range(4)]
SOME = ("fp32-0", "fp32-2", "bf16-3")


@pytest.fixture(scope="module")
def losses(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the losses of what the selected tests ask for."""
    chosen = [item.callspec.params for item in request.session.items if item.fspath == request.fspath]
    wanted = sorted({found["name"] for found in chosen})
    jobs = {name: job(int(name[-1]), name.partition("-")[0], "identity") for name in wanted}
    sizes = sorted({found["size"] for found in chosen if "size" in found})
    root = str(tmp_path_factory.mktemp("saved"))
    before = set(Path(tempfile.gettempdir()).glob("rcdist-universal-*"))
    results: dict[str, Any] = {}
    for size, saves in ((2, True), *((size, False) for size in sizes)):
        results |= run_group(run_each, size, jobs, root, saves)
    assert set(Path(tempfile.gettempdir()).glob("rcdist-universal-*")) <= before
    return results


@pytest.mark.parametrize("name", names(*EVERY, some=SOME))
def test_going_back_in_the_same_engine_repeats_every_loss(losses: dict, name: str) -> None:
    found = losses[f"{name} 2"]
    assert found["went back"] == found["unbroken"]


@pytest.mark.parametrize("size", [3, *(pytest.param(n, marks=pytest.mark.exhaustive) for n in (1, 4))])
@pytest.mark.parametrize("name", names(*EVERY, some=SOME))
def test_another_number_of_processes_goes_on_with_the_same_losses(losses: dict, name: str, size: int) -> None:
    found, expected = losses[f"{name} {size}"]["went on"], losses[f"{name} 2"]["unbroken"]
    # Sums in another order: float32 to a few ulp, bfloat16 to a few of its own.
    tolerance = 1e-5 if name.startswith("fp32") else 0.01
    assert found == pytest.approx(expected, rel=tolerance)
    assert expected[-1] < expected[0] * 0.99
