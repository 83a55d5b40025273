"""One pair of real gloo processes trains under DeepSpeed ZeRO whatever the selected tests name."""

from typing import Any

import pytest
import torch.multiprocessing as mp

from tests.conftest import free_ports
from tests.train.zero_worker import run_rank


@pytest.fixture(scope="module")
def zero(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Return the outcome of each name that a selected test of the module has as its parameter `name` or `like`."""
    items = [item for item in request.session.items if item.path == request.path]
    parameters = [item.callspec.params for item in items if "zero" in getattr(item, "fixturenames", ())]
    names = sorted({found[key] for found in parameters for key in ("name", "like") if key in found})
    with mp.get_context("spawn").Manager() as manager:
        results = manager.dict()
        mp.spawn(run_rank, args=(2, free_ports(1)[0], names, results), nprocs=2)
        return dict(results)


def names(*all_of_them: str, some: tuple[str, ...]) -> list[Any]:
    """Return parameters for every name; those that are not among `some` are for the exhaustive suite."""
    assert set(some) <= set(all_of_them)
    return [pytest.param(n, marks=() if n in some else pytest.mark.exhaustive) for n in all_of_them]
