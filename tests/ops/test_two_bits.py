"""Matrices at two bits a weight multiply exactly as those of a byte, with every set of instructions, at any size."""

import pytest
import torch

from rcdist.ops import native
from rcdist.ops.processor import Isa, limited
from rcdist.ops.topology import DenseMap
from rcdist.ops.two_bits import TwoBitMap, compact_map
from tests.ops.backends import X86
from tests.ops.test_int8_matmul import ISAS, SHAPES, exact, random_case

WIDE = [(1, 15, 1), (1, 16, 24), (2, 17, 48), (1, 1030, 97), (2, 1025, 25), (3, 64, 49)]
"""Around 16 inputs in a byte's four places, and the few rows that are multiplied without unpacking."""


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", SHAPES + WIDE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_products_are_exact_sums_times_scales(isa: Isa, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    codes, ternary = random_case(*shape)
    rows, columns = torch.rand(len(codes)), torch.rand(len(ternary))
    with limited(isa):
        matrix = TwoBitMap(ternary)
        assert torch.equal(matrix.unpack(), ternary)
        out = torch.full((len(codes), len(ternary)), torch.nan, dtype=dtype)
        arguments = (codes, matrix.packed, rows, columns, out)
        native.call("two_bit_product", out, *arguments, len(codes), *matrix.shape)
        again = matrix.scaled_product(out, codes, rows, columns)
    expected = (exact(codes, ternary).float() * rows.unsqueeze(1) * columns).to(dtype)
    # As for a byte a weight, the compiler may multiply the two scales first.
    torch.testing.assert_close(out, expected, rtol=2.4e-7 if dtype == torch.float32 else 2**-7, atol=0)
    assert torch.equal(again, out)


@pytest.mark.parametrize("code", [127, -128])
@pytest.mark.parametrize("weight", [1, -1])
@pytest.mark.parametrize("rows", [1, 2, 7])
@pytest.mark.parametrize("isa", ["native", pytest.param("avx2", marks=X86)])
def test_products_of_extremes_are_exact(code: int, weight: int, rows: int, isa: Isa) -> None:
    codes = torch.full((rows, 4100), code, dtype=torch.int8)
    with limited(isa):
        matrix = TwoBitMap(torch.full((17, 4100), weight, dtype=torch.int8))
        out = matrix.scaled_product(torch.empty(0), codes, torch.ones(rows), torch.ones(17))
    assert out.unique().tolist() == [4100 * code * weight]


def test_it_is_a_quarter_of_a_byte_and_multiplies_floats_too() -> None:
    _, ternary = random_case(1, 768, 1536)
    matrix, dense = TwoBitMap(ternary), DenseMap({"ternary": ternary}, (1536, 768))
    assert matrix.packed.numel() == ternary.numel() // 4
    x, y = torch.randn(3, 768), torch.randn(3, 1536)
    assert torch.equal(matrix.times(x), dense.times(x))
    assert torch.equal(matrix.times_transposed(y), dense.times_transposed(y))
    assert torch.equal(matrix.to(torch.float32).times(x), dense.times(x))


def test_without_compiled_kernels_a_byte_a_weight_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "is_available", lambda: False)
    assert isinstance(compact_map(torch.ones(2, 3, dtype=torch.int8)), DenseMap)
