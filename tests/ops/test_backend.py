"""The compiled CPU backend against the reference: outputs and every gradient, odd sizes, resets, states."""

import itertools
from collections.abc import Iterator

import pytest
import torch

from rcdist.ops import native
from rcdist.ops.backend import backend_of, force, forced
from rcdist.ops.cross_entropy import linear_cross_entropy
from rcdist.ops.native import observers
from rcdist.ops.norm import add_norm_quantise
from rcdist.ops.processor import limited
from rcdist.ops.project import Trained, project
from rcdist.ops.quantise import quantise_tokens
from rcdist.ops.scan import gated_scan
from rcdist.ops.weights import WeightsQuantisedOnce
from tests.ops import cases
from tests.ops.backends import X86

DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(
    autouse=True,
    params=[(1, "native"), pytest.param((2, "avx2"), marks=X86), (2, "native")],
    ids=["1 native", "2 avx2", "2 native"],
)
def _threads_and_instructions(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run everything on one thread and on two, as this processor and as one without AVX-512."""
    threads, isa = request.param
    torch.set_num_threads(threads)
    with limited(isa):
        yield


def test_the_compiler_is_there_and_cpu_is_chosen() -> None:
    assert native.is_available()
    assert backend_of(torch.zeros(1)) == backend_of(torch.zeros(1).bfloat16()) == "cpu"
    assert backend_of(torch.zeros(1).double()) == "reference"
    with forced("reference"):
        assert backend_of(torch.zeros(1)) == "reference"
    force("triton")
    assert backend_of(torch.zeros(1)) == "triton"  # interpreted
    assert backend_of(torch.zeros(1).double()) == "reference"
    force("auto")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [3, 17, 64, 131])
@pytest.mark.parametrize("has_delta", [True, False])
def test_norm(dtype: torch.dtype, width: int, has_delta: bool) -> None:
    cases.check_norm("cpu", dtype, width, has_delta)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [5, 17, 64, 131])
@pytest.mark.parametrize("kind", ["glu", "readout"])
def test_gated(dtype: torch.dtype, width: int, kind: str) -> None:
    cases.check_gated("cpu", dtype, width, kind)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 9, 17), (3, 33, 131)])
@pytest.mark.parametrize(("constant", "state", "starts"), list(itertools.product([True, False], repeat=3)))
def test_scan(dtype: torch.dtype, shape: tuple[int, int, int], constant: bool, state: bool, starts: bool) -> None:
    cases.check_scan("cpu", dtype, shape, constant=constant, state=state, starts=starts)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gain", [True, False])
@pytest.mark.parametrize(
    ("letter", "topology"),
    itertools.product("cGD", ["dense", "hadamard", "block", "ring", "identity", "permuted hadamard", "permuted block"]),
)
def test_project(dtype: torch.dtype, letter: str, topology: str, gain: bool) -> None:
    cases.check_project("cpu", dtype, letter, topology, gain=gain)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gated_by_tokens_that_are_repeated(dtype: torch.dtype) -> None:
    cases.check_repeated("cpu", dtype, 16, 40, factors=True)


def test_factors_where_the_kernels_take_none() -> None:
    cases.check_gated("cpu", torch.float32, 24, "glu", factors=True)
    cases.check_scan("cpu", torch.float32, (2, 9, 17), constant=False, state=True, starts=True, factors=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("letter", ["c", "G", "D"])
@pytest.mark.parametrize("topology", ["hadamard", "ring", "identity"])
def test_the_last_of_a_stack_is_cut(dtype: torch.dtype, letter: str, topology: str) -> None:
    cases.check_project("cpu", dtype, letter, topology, gain=True, width=32, glu_width=80)


@pytest.mark.parametrize(("letter", "topology"), [("G", "hadamard"), ("c", "dense")])
def test_project_with_a_gain_of_zero(letter: str, topology: str) -> None:
    cases.check_project("cpu", torch.float32, letter, topology, gain=True, zero_gain=True)


def test_a_lower_bound_of_one_and_a_gate_that_is_nan() -> None:
    cases.check_extreme_gates("cpu")


EMPTY = {
    "scan of no sequence": lambda: gated_scan(leaf(0, 5, 8), leaf(0, 5, 8), leaf(8)),
    "scan of no time": lambda: gated_scan(leaf(2, 0, 8), leaf(2, 0, 8), leaf(8)),
    "product": lambda: project(add_norm_quantise(leaf(0, 16), None, leaf(16), 1e-6)[1], [Trained(leaf(8, 16))]),
    "loss": lambda: [
        linear_cross_entropy(
            add_norm_quantise(leaf(0, 16), None, leaf(16), 1e-6)[1], Trained(leaf(32, 16)), torch.empty(0).long()
        )
    ],
}


def leaf(*shape: int) -> torch.Tensor:
    return torch.rand(shape, requires_grad=True)


@pytest.mark.parametrize("name", EMPTY)
def test_an_empty_batch_is_no_crash(name: str) -> None:
    with forced("cpu"):
        outputs = EMPTY[name]()
    sum(output.sum() for output in outputs).backward()


@pytest.mark.parametrize("target", [-1, 32, 10**9])
def test_a_target_beyond_the_vocabulary_is_an_error(target: int) -> None:
    tokens = add_norm_quantise(leaf(4, 16), None, leaf(16), 1e-6)[1]
    with forced("cpu"), pytest.raises(IndexError, match=r"a target is not in \[0, 32\)"):
        linear_cross_entropy(tokens, Trained(leaf(32, 16)), torch.tensor([1, 2, 3, target]))


def test_without_gradient_the_loss_multiplies_once() -> None:
    tokens, head = add_norm_quantise(leaf(4, 16), None, leaf(16), 1e-6)[1], Trained(leaf(32, 16))
    products: list[str] = []
    observers.append(lambda kernel, _: products.append(kernel))
    try:
        with forced("cpu"), torch.no_grad():
            linear_cross_entropy(tokens, head, torch.tensor([1, 2, 3, 4]))
            without = list(products)
        with forced("cpu"):
            linear_cross_entropy(tokens, head, torch.tensor([1, 2, 3, 4]))
    finally:
        observers.pop()
    assert "scale_rows" not in without and "scale_rows" in products[len(without) :]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "vocabulary"), [(1, 3), (37, 131), (133, 65_537)])
@pytest.mark.parametrize("weighted", [True, False])
def test_loss(dtype: torch.dtype, rows: int, vocabulary: int, weighted: bool) -> None:
    cases.check_loss("cpu", dtype, rows, vocabulary, weighted=weighted)


def test_a_nan_comes_through() -> None:
    x = torch.randn(2, 24)
    x[1, 3] = float("nan")
    _, z = add_norm_quantise(x, None, torch.ones(24), 1e-6)
    assert z.scale is not None
    assert z.scale.flatten().isnan().tolist() == [False, True]


def test_a_weight_that_was_rounded_again_is_multiplied_by_as_it_is_now() -> None:
    weight, x, kept = torch.randn(24, 40), torch.randn(5, 40), WeightsQuantisedOnce()
    for _ in range(2):
        with torch.no_grad():
            with kept:
                kept.round_again()
                (found,) = project(quantise_tokens(x), [Trained(weight)])  # so few rows that the packed matrix is kept
            with forced("reference"):
                (expected,) = project(quantise_tokens(x), [Trained(weight)])
        torch.testing.assert_close(found, expected)
        weight.copy_(-2 * weight.flip(0))
