"""Groups of real gloo processes: a pair that trains under DeepSpeed ZeRO whatever tests name, and one process alone."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch.distributed as dist

from tests.processes import run_group
from tests.train.zero_worker import run_each


@pytest.fixture(scope="module")
def zero(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Return the outcome of each name that a selected test of the module has as its parameter `name` or `like`."""
    items = [item for item in request.session.items if item.path == request.path]
    parameters = [item.callspec.params for item in items if "zero" in getattr(item, "fixturenames", ())]
    names = sorted({found[key] for found in parameters for key in ("name", "like") if key in found})
    return run_group(run_each, 2, names)


@pytest.fixture(scope="module")
def one_rank() -> Iterator[None]:
    """Make this process a gloo group of its own."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def names(*all_of_them: str, some: tuple[str, ...]) -> list[Any]:
    """Return parameters for every name; those that are not among `some` are for the exhaustive suite."""
    assert set(some) <= set(all_of_them)
    return [pytest.param(n, marks=() if n in some else pytest.mark.exhaustive) for n in all_of_them]
