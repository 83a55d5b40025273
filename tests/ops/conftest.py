"""Buffers that a function forgets to fill hold NaN in the tests of this folder."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _nan_filled_empty() -> Iterator[None]:
    """Fill torch.empty with NaN (integers: the largest value)."""
    torch.set_num_threads(1)
    torch.manual_seed(42)
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)
