"""Every way to multiply int8 codes by a ternary matrix gives the same int32 sums, at any size and at the extremes."""

import pytest
import torch

from rcdist.ops import int8_matmul as ways
from rcdist.ops import native
from rcdist.ops.int8_matmul import int8_matmul, packed, scaled_int8_matmul
from rcdist.ops.processor import Isa, has_onednn_int8, limited
from tests.ops.backends import X86

ISAS = ["native", pytest.param("avx2", marks=X86), pytest.param("x86-64", marks=[X86, pytest.mark.exhaustive])]
SHAPES = [(1, 1, 1), (3, 5, 2), (7, 255, 17), (9, 256, 16), (13, 257, 49), (61, 1030, 33), (130, 64, 97)]
"""Around what the kernel does at a time: 4 inputs, 256 in 16 bits, panels of 8, 16 or 48, rows by 4, 6, 8, 2 and 1."""


def random_case(rows: int, summed: int, outputs: int) -> tuple[torch.Tensor, torch.Tensor]:
    codes = torch.randint(-128, 128, (rows, summed), dtype=torch.int8)
    return codes, torch.randint(-1, 2, (outputs, summed), dtype=torch.int8)


def exact(codes: torch.Tensor, ternary: torch.Tensor) -> torch.Tensor:
    return (codes.long() @ ternary.long().t()).int()


@pytest.fixture(params=["onednn", "c++", "float32"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "onednn" and not has_onednn_int8():
        pytest.skip("this processor has no int8 instructions that oneDNN uses")
    monkeypatch.setattr(ways, "int8_kernel", lambda: request.param)
    return str(request.param)


@pytest.mark.parametrize("shape", SHAPES)
def test_sums_are_exact(kernel: str, shape: tuple[int, int, int]) -> None:
    codes, ternary = random_case(*shape)
    assert torch.equal(int8_matmul(codes, ternary), exact(codes, ternary))


@pytest.mark.parametrize("code", [127, -128])
@pytest.mark.parametrize("weight", [1, -1])
def test_sums_of_extremes_are_exact(kernel: str, code: int, weight: int) -> None:
    # 1028 inputs: more than 16 bits hold.
    codes, ternary = torch.full((7, 1028), code, dtype=torch.int8), torch.full((17, 1028), weight, dtype=torch.int8)
    assert int8_matmul(codes, ternary).unique().tolist() == [1028 * code * weight]


def test_float32_sums_stay_exact_where_one_float_would_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways, "int8_kernel", lambda: "float32")
    codes, ternary = torch.full((1, 140_001), 127, dtype=torch.int8), torch.ones(1, 140_001, dtype=torch.int8)
    assert int(int8_matmul(codes, ternary)) == 140_001 * 127 > 2**24


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_compiled_kernel_is_exact_with_every_set_of_instructions(
    monkeypatch: pytest.MonkeyPatch, isa: Isa, shape: tuple[int, int, int]
) -> None:
    monkeypatch.setattr(ways, "int8_kernel", lambda: "c++")
    codes, ternary = random_case(*shape)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        with limited(isa):
            assert torch.equal(int8_matmul(codes, ternary), exact(codes, ternary))
            all_low, all_ones = torch.full_like(codes, -128), torch.ones_like(ternary)
            assert torch.equal(int8_matmul(all_low, all_ones), exact(all_low, all_ones))
            assert torch.equal(int8_matmul(all_low, -all_ones), exact(all_low, -all_ones))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_kernel_scales_the_sums(monkeypatch: pytest.MonkeyPatch, kernel: str, dtype: torch.dtype) -> None:
    codes, ternary = random_case(13, 257, 49)
    rows, columns = torch.rand(13), torch.randn(49)
    expected = (exact(codes, ternary).float() * rows[:, None] * columns).to(dtype)
    found = scaled_int8_matmul(torch.empty(0, dtype=dtype), codes, rows, ternary, columns)
    # The compiler may multiply the two scales first: two roundings of half an ulp each.
    torch.testing.assert_close(found, expected, rtol=2.4e-7 if dtype == torch.float32 else 2**-7, atol=0)


def test_what_was_packed_for_few_rows_is_kept_until_the_matrix_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways, "int8_kernel", lambda: "c++")
    codes, ternary = random_case(2, 64, 40)
    assert packed(ternary, 2) is packed(ternary, 2)
    assert torch.equal(int8_matmul(codes, ternary), exact(codes, ternary))
    ternary.neg_()
    assert torch.equal(int8_matmul(codes, ternary), exact(codes, ternary))
    many = random_case(2, 64, 40)[1]
    assert packed(many, 1000) is not packed(many, 1000)


def test_a_packed_matrix_takes_a_byte_per_weight() -> None:
    assert native.query("packed_bytes", 48 * 3, 256) == 48 * 3 * 256
