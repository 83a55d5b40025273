"""The Triton kernels on a real GPU against the reference: `python -m pytest -m gpu` there; skipped elsewhere."""

from collections.abc import Iterator

import pytest
import torch

from rcdist.config import Architecture, ModelConfig, ReservoirConfig
from rcdist.model.reservoir import build_bank
from rcdist.ops import project_triton, two_bits_triton
from rcdist.ops.two_bits import TwoBitPlanes
from tests.ops import cases

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
WIDTHS = pytest.mark.parametrize("width", [5, 131, 1024, 2816])


@pytest.fixture(autouse=True)
def _on_the_gpu() -> Iterator[None]:
    torch.set_default_device("cuda")
    torch.manual_seed(42)
    yield
    torch.set_default_device("cpu")


@DTYPES
@WIDTHS
def test_norm(dtype: torch.dtype, width: int) -> None:
    cases.check_norm("triton", dtype, width, True)


@DTYPES
@WIDTHS
@pytest.mark.parametrize("num", [1, 3, 4])
def test_norms(dtype: torch.dtype, width: int, num: int) -> None:
    cases.check_norms("triton", dtype, width, num, True)


@DTYPES
@pytest.mark.parametrize("shape", [(1, 3), (67, 131), (2048, 5632)])
def test_weight(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    cases.check_weight("triton", dtype, shape)


@DTYPES
@WIDTHS
@pytest.mark.parametrize("kind", ["glu", "readout"])
def test_gated(dtype: torch.dtype, width: int, kind: str) -> None:
    cases.check_gated("triton", dtype, width, kind)


@DTYPES
@pytest.mark.parametrize(("width", "inner"), [(16, 40), (512, 1536), (1024, 2816), (2048, 5632)])
def test_gated_by_tokens_that_are_repeated(dtype: torch.dtype, width: int, inner: int) -> None:
    cases.check_repeated("triton", dtype, width, inner, factors=True)


@DTYPES
@pytest.mark.parametrize("shape", [(2, 37, 40), (1, 3000, 70), (64, 129, 2048)])
@pytest.mark.parametrize("has_state", [True, False])
def test_scan(dtype: torch.dtype, shape: tuple[int, int, int], has_state: bool) -> None:
    cases.check_scan("triton", dtype, shape, constant=False, state=has_state, starts=has_state)


@DTYPES
@pytest.mark.parametrize("width", [5, 131, 1024, 2816, 5632])
@pytest.mark.parametrize("kind", ["glu", "readout"])
def test_gated_with_factors(dtype: torch.dtype, width: int, kind: str) -> None:
    cases.check_gated("triton", dtype, width, kind, factors=True)


@DTYPES
@pytest.mark.parametrize("shape", [(2, 37, 40), (1, 3000, 70), (64, 129, 2048)])
@pytest.mark.parametrize("constant", [True, False])
def test_scan_with_factors(dtype: torch.dtype, shape: tuple[int, int, int], constant: bool) -> None:
    cases.check_scan("triton", dtype, shape, constant=constant, state=True, starts=True, factors=True)


@DTYPES
@pytest.mark.parametrize("gain", [True, False])
@pytest.mark.parametrize(
    ("letter", "topology"),
    [
        *[(letter, topology) for letter in "cGD" for topology in ("dense", "hadamard")],
        *[("G", "block"), ("G", "permuted block"), ("G", "permuted hadamard")],
    ],
)
@pytest.mark.parametrize(("width", "glu_width"), [(256, 1024), (512, 1408), (2048, 5632), (48, 96), (768, 1536)])
def test_project(dtype: torch.dtype, letter: str, topology: str, gain: bool, width: int, glu_width: int) -> None:
    cases.check_project("triton", dtype, letter, topology, gain=gain, width=width, glu_width=glu_width)


@DTYPES
@pytest.mark.parametrize(("rows", "vocabulary"), [(37, 131), (300, 32000)])
def test_loss(dtype: torch.dtype, rows: int, vocabulary: int) -> None:
    cases.check_loss("triton", dtype, rows, vocabulary, weighted=True)


@DTYPES
def test_weight_in_backward(dtype: torch.dtype) -> None:
    cases.check_weight_in_backward("triton", dtype)


@pytest.mark.parametrize("letter", ["G", "D"])
def test_float16_holds_the_largest_sums_of_a_hadamard(letter: str) -> None:
    bank = cases.make_bank(letter, "hadamard", 2048, 5632)
    matrix = bank.linear_map(f"{letter}@a")
    codes = torch.full((3, matrix.shape[1]), 127, dtype=torch.int8)  # all that there is goes into one channel
    found = project_triton.forward(
        codes.to(torch.bfloat16), codes, torch.ones(3), matrix, torch.ones(1).expand(matrix.shape[0])
    )
    expected = matrix.times(codes.double())
    torch.testing.assert_close(found.double(), expected, rtol=2e-2, atol=2e-2 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("version", "digest"),
    [
        (1, "e063eaf92bb62eb6e7fd34acf4bf98e5ccb922be823838b25f96143137fee492"),
        (2, "1a8c24514dc09e65fe2cb619deb062604354f84706c49afc85c7e322efbb9800"),
    ],
)
def test_a_bank_has_the_same_bytes_on_every_platform(version: int, digest: str) -> None:
    topology = {"c": "block", "G": "hadamard", "D": "hadamard", "r": "ring", "f": "dense", "U": "block"}
    config = ReservoirConfig(plan="cfGUD@a+r", topology=topology, block_size=3, version=version)
    with torch.device("cpu"):
        bank = build_bank(Architecture(ModelConfig(num_layers=4, width=24, glu_width=48), config))
    assert bank.digest() == digest


@DTYPES
@pytest.mark.parametrize(
    ("rows", "outputs", "inputs"),
    [
        (1, [2048] * 3, 2048),
        (1, [5632] * 2, 2048),
        (1, [2047], 5632),
        (5, [2048], 5632),
        (64, [5600], 2048),
        (300, [64], 48),
    ],
)
def test_two_bits(dtype: torch.dtype, rows: int, outputs: list[int], inputs: int) -> None:
    codes, scales = torch.randint(-128, 128, (rows, inputs), dtype=torch.int8), torch.rand(rows)
    tables = [torch.randint(-1, 2, (n, inputs), dtype=torch.int8) for n in outputs]
    columns = [torch.rand(n) for n in outputs]
    packed = [TwoBitPlanes(table).packed for table in tables]
    found = two_bits_triton.products(torch.empty(0, dtype=dtype), codes, scales, packed, columns)
    for product, table, column in zip(found, tables, columns, strict=True):
        exact = (codes.double() @ table.double().t()).float()
        expected = (exact * scales[:, None] * column).to(dtype)
        torch.testing.assert_close(product, expected, rtol=3e-7 if dtype == torch.float32 else 2**-7, atol=0)
