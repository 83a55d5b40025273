"""The Triton backend, interpreted on the CPU, against the reference: outputs and every gradient."""

import itertools
import os
import subprocess
import sys

import pytest
import torch

from rcdist.config import ModelConfig
from rcdist.ops.backend import forced
from rcdist.ops.cross_entropy import linear_cross_entropy
from rcdist.ops.norm import add_norm_quantise
from rcdist.ops.project import Trained
from tests.conftest import ROOT
from tests.ops import cases

pytest.importorskip("triton")

DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [5, 64, 131])
@pytest.mark.parametrize("has_delta", [True, False])
def test_norm(dtype: torch.dtype, width: int, has_delta: bool) -> None:
    cases.check_norm("triton", dtype, width, has_delta)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("width", "num", "has_delta"), [(5, 1, True), (131, 3, False), (64, 3, True), (40, 4, True)])
def test_norms(dtype: torch.dtype, width: int, num: int, has_delta: bool) -> None:
    cases.check_norms("triton", dtype, width, num, has_delta)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 3), (67, 131)])
def test_weight(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    cases.check_weight("triton", dtype, shape)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [5, 64, 131])
@pytest.mark.parametrize("kind", ["glu", "readout"])
def test_gated(dtype: torch.dtype, width: int, kind: str) -> None:
    cases.check_gated("triton", dtype, width, kind)


SCANS = list(itertools.product(DTYPES, [(1, 1, 1), (2, 37, 40), (1, 70, 3)], *[[True, False]] * 3))
SOME_SCANS = [
    (torch.float32, (1, 1, 1), False, False, True),
    (torch.float32, (2, 37, 40), False, True, True),
    (torch.float32, (2, 37, 40), True, False, False),
    (torch.bfloat16, (1, 70, 3), False, True, True),
]
"""Each dtype, shape, constant gate, given state and document starts at least once."""


@pytest.mark.parametrize(
    ("dtype", "shape", "constant", "state", "starts"),
    [pytest.param(*scan, marks=() if scan in SOME_SCANS else pytest.mark.exhaustive) for scan in SCANS],
)
def test_scan(dtype: torch.dtype, shape: tuple[int, int, int], constant: bool, state: bool, starts: bool) -> None:
    cases.check_scan("triton", dtype, shape, constant=constant, state=state, starts=starts)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gain", [True, False])
@pytest.mark.parametrize(("letter", "topology"), [("c", "dense"), ("D", "dense"), ("G", "block"), ("c", "ring")])
def test_project(dtype: torch.dtype, letter: str, topology: str, gain: bool) -> None:
    cases.check_project("triton", dtype, letter, topology, gain=gain)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("letter", ["G", "D"])
@pytest.mark.parametrize("topology", ["ring", "identity"])
def test_the_last_of_a_stack_is_cut(dtype: torch.dtype, letter: str, topology: str) -> None:
    cases.check_project("triton", dtype, letter, topology, gain=True, width=36, glu_width=90)


@pytest.mark.parametrize("norm", ["shared", "per_projection"])
def test_every_kernel_that_is_compiled_ahead_can_be_launched(norm: str) -> None:
    from rcdist.ops.precompile_triton import _work

    model = ModelConfig(num_layers=1, width=16, glu_width=32, vocab_size=64, norm=norm)
    for task in _work(model, 2, 64, torch.bfloat16, torch.device("cpu"), rows=16):
        task()


@pytest.mark.parametrize("dtype", DTYPES)
def test_weight_in_backward(dtype: torch.dtype) -> None:
    cases.check_weight_in_backward("triton", dtype)


def test_a_lower_bound_of_one_and_a_gate_that_is_nan() -> None:
    cases.check_extreme_gates("triton")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [131, 4100])
@pytest.mark.parametrize("kind", ["glu", "readout"])
def test_gated_with_factors(dtype: torch.dtype, width: int, kind: str) -> None:
    cases.check_gated("triton", dtype, width, kind, factors=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("factors", [True, False])
@pytest.mark.parametrize(("width", "inner"), [(16, 40), (32, 32), (24, 40), (16, 4100)])
def test_gated_by_tokens_that_are_repeated(dtype: torch.dtype, width: int, inner: int, factors: bool) -> None:
    cases.check_repeated("triton", dtype, width, inner, factors=factors)


@pytest.mark.parametrize("gain", [True, False])
def test_a_glu_whose_up_projection_repeats(gain: bool) -> None:
    cases.check_glu("triton", "identity", gain=gain)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("constant", [True, False])
def test_scan_with_factors(dtype: torch.dtype, constant: bool) -> None:
    cases.check_scan("triton", dtype, (2, 37, 40), constant=constant, state=True, starts=True, factors=True)


@pytest.mark.parametrize(("letter", "topology"), [("G", "hadamard"), ("c", "dense")])
def test_project_with_a_gain_of_zero(letter: str, topology: str) -> None:
    cases.check_project("triton", torch.float32, letter, topology, gain=True, zero_gain=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gain", [True, False])
@pytest.mark.parametrize(("letter", "glu_width"), [("c", 48), ("G", 80), ("G", 48), ("D", 64), ("G", 272)])
def test_block(dtype: torch.dtype, letter: str, glu_width: int, gain: bool) -> None:
    cases.check_project("triton", dtype, letter, "block", gain=gain, width=16, glu_width=glu_width)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("letter", ["c", "G", "D"])
def test_hadamard(dtype: torch.dtype, letter: str) -> None:
    cases.check_project("triton", dtype, letter, "hadamard", gain=True, width=256, glu_width=576)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gain", [True, False])
@pytest.mark.parametrize("letter", ["c", "G", "D"])
def test_hadamard_of_several_runs(dtype: torch.dtype, letter: str, gain: bool) -> None:
    cases.check_project("triton", dtype, letter, "hadamard", gain=gain, width=768, glu_width=1000)


LOSSES = list(itertools.product(DTYPES, [(1, 3), (37, 131), (3, 4100)], [True, False]))
SOME_LOSSES = [(torch.float32, (3, 4100), True), (torch.bfloat16, (37, 131), False), (torch.bfloat16, (1, 3), True)]
"""Below, at and beyond one block of 4,096 logits."""


@pytest.mark.parametrize(
    ("dtype", "shape", "weighted"),
    [pytest.param(*loss, marks=() if loss in SOME_LOSSES else pytest.mark.exhaustive) for loss in LOSSES],
)
def test_loss(dtype: torch.dtype, shape: tuple[int, int], weighted: bool) -> None:
    rows, vocabulary = shape
    cases.check_loss("triton", dtype, rows, vocabulary, weighted=weighted)


@pytest.mark.slow
def test_every_kernel_compiles_for_sm_90_without_a_gpu() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.ops.compile_triton"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    compiled = [line for line in done.stdout.splitlines() if line.startswith("sm_90")]
    assert len(compiled) == 2 * 29, done.stdout


@pytest.mark.parametrize("target", [-1, 32, 10**6])
def test_a_target_beyond_the_vocabulary_is_a_loss_that_is_no_number(target: int) -> None:
    tokens = add_norm_quantise(torch.randn(4, 16), None, torch.ones(16), 1e-6)[1]
    with forced("triton"):
        loss = linear_cross_entropy(tokens, Trained(torch.randn(32, 16)), torch.tensor([1, 2, 3, target]))
    assert loss.isnan()
