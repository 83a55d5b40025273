"""Products with matrices of two bits a weight on a GPU's kernels, interpreted here: exact sums, alone or together."""

import os

import pytest
import torch

from rcdist.ops.backend import forced
from rcdist.ops.project import Frozen, project
from rcdist.ops.quantise import Quantised
from rcdist.ops.topology import DenseMap
from rcdist.ops.two_bits import TwoBitPlanes

pytest.importorskip("triton")
two_bits_triton = pytest.importorskip("rcdist.ops.two_bits_triton")
pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="the GPU has tests of its own")

SIZES = [(1, [1], 16), (1, [9, 40], 80), (1, [7, 24, 8, 5], 336), (3, [33, 2], 176), (20, [5], 48)]


def case(rows: int, outputs: list[int], inputs: int) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    codes = torch.randint(-128, 128, (rows, inputs), dtype=torch.int8)
    return codes, torch.rand(rows), [torch.randint(-1, 2, (n, inputs), dtype=torch.int8) for n in outputs]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("rows", "outputs", "inputs"), SIZES)
def test_products_are_exact_sums_times_scales(dtype: torch.dtype, rows: int, outputs: list[int], inputs: int) -> None:
    codes, scales, tables = case(rows, outputs, inputs)
    columns = [torch.rand(n) if i % 2 else torch.rand(1).expand(n) for i, n in enumerate(outputs)]
    packed = [TwoBitPlanes(table).packed for table in tables]
    found = two_bits_triton.products(torch.empty(0, dtype=dtype), codes, scales, packed, columns)
    for product, table, column in zip(found, tables, columns, strict=True):
        exact = codes.long() @ table.long().t()
        expected = (exact.float() * scales[:, None] * column).to(dtype)
        torch.testing.assert_close(product, expected, rtol=2.4e-7 if dtype == torch.float32 else 2**-7, atol=0)


def test_it_is_unpacked_to_what_it_was() -> None:
    _, _, (table,) = case(1, [37], 112)
    matrix = TwoBitPlanes(table)
    assert matrix.packed.numel() == 37 * 112 // 4
    assert torch.equal(matrix.unpack(), table) and torch.equal(two_bits_triton.unpack(matrix.packed), table)
    x = torch.randn(3, 112)
    torch.testing.assert_close(matrix.times(x), x @ table.float().t())
    torch.testing.assert_close(matrix.times_transposed(torch.eye(37)), table.float())


def test_many_rows_and_mixed_matrices_go_their_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(two_bits_triton, "_MOST_ROWS", 4)
    codes, scales, (first, second) = case(6, [8, 16], 32)
    maps = [TwoBitPlanes(first), DenseMap({"ternary": second}, (16, 32))]
    handle = torch.randn(6, 32)
    with forced("triton"):
        found = project(Quantised(handle, codes, scales[:, None]), [Frozen(each, 0.5) for each in maps])  # type: ignore[arg-type]
    for product, table in zip(found, (first, second), strict=True):
        torch.testing.assert_close(product, (codes.float() @ table.float().t()) * scales[:, None] * 0.5)
