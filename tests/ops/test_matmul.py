"""matmul equals @ at odd sizes and in every layout."""

import pytest
import torch

from rcdist.ops.matmul import matmul


@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 33, 65), (130, 64, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_equals_the_operator(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    rows, summed, columns = shape
    a = torch.randint(-9, 10, (rows, summed)).to(dtype)
    b = torch.randint(-1, 2, (summed, columns)).to(dtype)
    expected = a @ b
    for left in (a, a.t().contiguous().t()):
        for right in (b, b.t().contiguous().t()):
            assert torch.equal(matmul(left, right), expected)
