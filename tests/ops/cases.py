"""Every operation that has fused backends, called on random inputs of odd sizes, as functions of backend and dtype."""

import torch
from torch import Tensor

from rcdist.config import Architecture, ModelConfig, ReservoirConfig
from rcdist.model.bitlinear import ProjectionBuilder
from rcdist.model.glu import GLU
from rcdist.model.init import InitKey
from rcdist.model.reservoir import ReservoirBank, build_bank
from rcdist.ops.backend import Choice, forced
from rcdist.ops.cross_entropy import linear_cross_entropy
from rcdist.ops.gated import Repeated, glu_quantise, readout_quantise
from rcdist.ops.norm import add_norm_quantise, add_norms_quantise
from rcdist.ops.project import Frozen, Trained, Unmultiplied, project
from rcdist.ops.quantise import Quantised, quantise_tokens, quantise_weight
from rcdist.ops.scan import gated_scan
from rcdist.ops.weights import WeightsQuantisedOnce, quantised_weight
from tests.ops.backends import TOLERANCE, assert_near, assert_same_codes, compare

EPS = 1e-6


def leaf(*shape: int, dtype: torch.dtype, positive: bool = False) -> Tensor:
    made = torch.rand(shape) + 0.5 if positive else torch.randn(shape)
    return made.to(dtype).requires_grad_()


def check_norm(backend: Choice, dtype: torch.dtype, width: int, has_delta: bool) -> None:
    x, gain = leaf(3, 5, width, dtype=dtype), leaf(width, dtype=dtype, positive=True)
    delta = leaf(3, 5, width, dtype=dtype) if has_delta else None
    kept: list[Quantised] = []

    def run() -> tuple[Tensor, ...]:
        total, z = add_norm_quantise(x, delta, gain, EPS)
        kept.append(z)
        return (total * 1, z.handle) if has_delta else (z.handle,)

    reference, fused = compare(backend, run, [t for t in (x, delta, gain) if t is not None], dtype)
    assert_same_codes(kept[1], kept[0], dtype)
    if has_delta:
        # Triton's interpreter truncates to bfloat16.
        assert_near(fused[0], reference[0], 0 if dtype == torch.float32 else 2**-7, "sum")


def check_norms(backend: Choice, dtype: torch.dtype, width: int, num: int, has_delta: bool) -> None:
    x, gain = leaf(3, 5, width, dtype=dtype), leaf(width, dtype=dtype, positive=True)
    gains = [leaf(width, dtype=dtype, positive=True) for _ in range(num)]
    delta = leaf(3, 5, width, dtype=dtype) if has_delta else None
    kept: list[list[Quantised]] = []

    def run() -> tuple[Tensor, ...]:
        total, each = add_norms_quantise(x, delta, gain, gains, EPS)
        kept.append(each)
        return (*((total * 1,) if has_delta else ()), *(z.handle for z in each))

    reference, fused = compare(backend, run, [t for t in (x, delta, gain, *gains) if t is not None], dtype)
    for found, expected in zip(kept[1], kept[0], strict=True):
        assert_same_codes(found, expected, dtype)
    if has_delta:
        assert_near(fused[0], reference[0], 0 if dtype == torch.float32 else 2**-7, "sum")


def check_weight(backend: Choice, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    weight = torch.randn(shape).to(dtype)
    with forced(backend):
        kept = WeightsQuantisedOnce()
        with kept:
            found = quantised_weight(weight)
        first = found.values.clone()
        assert_same_codes(found, quantise_weight(weight), torch.float32)
        weight.mul_(-2.0)
        kept.round_again()  # into the same tensors
    assert torch.equal(found.values, -first)
    assert_same_codes(found, quantise_weight(weight), torch.float32)


def check_weight_in_backward(backend: Choice, dtype: torch.dtype) -> None:
    """Gradients are taken by the weights of the step, also after they were rounded again where they lie."""
    weight, x, dy = leaf(24, 40, dtype=dtype), leaf(5, 40, dtype=dtype), torch.randn(5, 24).to(dtype)
    kept, found = WeightsQuantisedOnce(), []
    for factor in (1.0, -2.0):
        with torch.no_grad():
            weight.mul_(factor)
        for choice, scope in ((backend, kept), ("reference", WeightsQuantisedOnce())):
            with forced(choice), scope:  # type: ignore[arg-type]
                scope.round_again()
                for _ in range(2):  # as many micro-batches
                    (y,) = project(quantise_tokens(x), [Trained(weight)])
                    found.append(torch.autograd.grad(y, x, dy)[0])
    for first in range(0, len(found), 4):
        for fused in found[first : first + 2]:
            assert_near(fused, found[first + 2], TOLERANCE[dtype], "gradient")
    assert not torch.equal(found[0], found[4])


def check_gated(backend: Choice, dtype: torch.dtype, width: int, kind: str, *, factors: bool = False) -> None:
    a, b, gain = leaf(3, 5, width, dtype=dtype), leaf(3, 5, width, dtype=dtype), leaf(width, dtype=dtype, positive=True)
    inner = leaf(width, dtype=dtype, positive=True)
    kept: list[Quantised] = []
    by = [leaf(width, dtype=dtype, positive=True) for _ in range(2 * factors)]

    def run() -> tuple[Tensor, ...]:
        rest = (gain, EPS, "nearest", *by)
        z = glu_quantise(a, b, *rest) if kind == "glu" else readout_quantise(a, b, inner, *rest)
        kept.append(z)
        return (z.handle,)

    compare(backend, run, [a, b, gain, *by] if kind == "glu" else [a, b, gain, inner, *by], dtype)
    assert_same_codes(kept[1], kept[0], dtype)


def check_repeated(backend: Choice, dtype: torch.dtype, width: int, inner: int, *, factors: bool) -> None:
    """Gate by tokens that are repeated, beside a product of the same tokens."""
    x, weight, gain = (
        leaf(3, 5, width, dtype=dtype),
        leaf(inner, width, dtype=dtype),
        leaf(inner, dtype=dtype, positive=True),
    )
    by = [leaf(inner, dtype=dtype, positive=True) for _ in range(2 * factors)]
    kept: list[Quantised] = []

    def run() -> tuple[Tensor, ...]:
        tokens = quantise_tokens(x)
        handle, a = project(tokens, [Unmultiplied(), Trained(weight)])
        z = glu_quantise(a, Repeated(tokens._replace(handle=handle), 0.7), gain, EPS, "nearest", *by)
        kept.append(z)
        return (z.handle,)

    compare(backend, run, [x, weight, gain, *by], dtype)
    assert_same_codes(kept[1], kept[0], dtype)


def check_glu(backend: Choice, topology: str, *, gain: bool) -> None:
    """Compute a GLU whose up projection is frozen, and the gradients of all its parameters."""
    model = ModelConfig(num_layers=1, width=32, glu_width=80)
    architecture = Architecture(model, ReservoirConfig(plan="U@a", topology=topology, gain=gain, input_scaling=0.7))
    glu = GLU(ProjectionBuilder(architecture, build_bank(architecture)), 0, InitKey(0, "glu"))
    with torch.no_grad():
        for parameter in glu.parameters():
            if parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5)
    x, delta = leaf(3, 5, 32, dtype=torch.float32), leaf(3, 5, 32, dtype=torch.float32)
    found, expected = compare(backend, lambda: glu(x, delta), [x, delta, *glu.parameters()], torch.float32)
    for fused, plain in zip(expected, found, strict=True):
        assert_near(fused, plain, TOLERANCE[torch.float32], "GLU")


def check_scan(
    backend: Choice,
    dtype: torch.dtype,
    shape: tuple[int, int, int],
    *,
    constant: bool,
    state: bool,
    starts: bool,
    factors: bool = False,
) -> None:
    batch, time, width = shape
    by = [leaf(width, dtype=dtype, positive=True) if factors else None for _ in range(2)]
    by[0] = None if constant else by[0]
    pf, pc = leaf(*shape, dtype=dtype), leaf(*shape, dtype=dtype)
    gamma = (torch.rand(width) * 0.9).requires_grad_()
    h0 = leaf(batch, width, dtype=torch.float32) if state else None
    begins = torch.rand(batch, time) < 0.3 if starts else None
    leaves = [pc] if constant else [pf, pc, gamma]

    def run() -> tuple[Tensor, ...]:
        return gated_scan(0.7 if constant else pf, pc, None if constant else gamma, h0, begins, *by)

    reference, fused = compare(backend, run, [*leaves, *(x for x in (h0, *by) if x is not None)], dtype)
    for found, expected in zip(fused, reference, strict=True):
        assert found.dtype == expected.dtype
        assert_near(found, expected, TOLERANCE[dtype], "states")


def check_extreme_gates(backend: Choice) -> None:
    """A lower bound of exactly 1 has finite gradients; a gate or candidate that is NaN makes the state NaN."""
    pf, pc = leaf(2, 37, 5, dtype=torch.float32), leaf(2, 37, 5, dtype=torch.float32)
    gamma = torch.tensor([0.0, 0.5, 1.0, 1.0, 0.9]).requires_grad_()
    compare(backend, lambda: gated_scan(pf, pc, gamma), [pf, pc, gamma], torch.float32)
    for poisoned in (pf, pc):
        with torch.no_grad():
            kept = poisoned[0, 20, 1].clone()
            poisoned[0, 20, 1] = float("nan")
            with forced(backend):
                h, last = gated_scan(pf, pc, gamma)
            poisoned[0, 20, 1] = kept
        assert h[0, 20:, 1].isnan().all() and last[0, 1].isnan()
        assert h[0, :20].isfinite().all() and h[1].isfinite().all() and h[0, :, 2:].isfinite().all()


def make_bank(letter: str, topology: str, width: int, glu_width: int) -> ReservoirBank:
    """Return a bank of one matrix; topology `permuted ...`: as generator version 1 made it."""
    version = 1 if topology.startswith("permuted ") else 2
    topology = topology.removeprefix("permuted ")
    config = ReservoirConfig(plan=letter + "@a", topology=topology, block_size=8, version=version)
    bank = build_bank(Architecture(ModelConfig(num_layers=1, width=width, glu_width=glu_width), config))
    return bank.to(torch.get_default_device())


def check_project(
    backend: Choice,
    dtype: torch.dtype,
    letter: str,
    topology: str,
    *,
    gain: bool,
    zero_gain: bool = False,
    width: int = 24,
    glu_width: int = 48,
) -> None:
    """Multiply by a trained matrix and a frozen one together."""
    bank = make_bank(letter, topology, width, glu_width)
    (spec,) = bank.specs
    outputs, inputs = spec.shape
    x, weight = leaf(3, 7, inputs, dtype=dtype), leaf(33, inputs, dtype=dtype)
    gains = leaf(outputs, dtype=dtype, positive=True) if gain else None
    if zero_gain:
        assert gains is not None
        with torch.no_grad():
            gains[3] = 0
    frozen = Frozen(bank.linear_map(spec.key), spec.scale, gains)

    def run() -> list[Tensor]:
        return project(quantise_tokens(x), [Trained(weight), frozen])

    reference, fused = compare(backend, run, [t for t in (x, weight, gains) if t is not None], dtype)
    for found, expected in zip(fused, reference, strict=True):
        assert found.dtype == dtype
        assert_near(found, expected, TOLERANCE[dtype], "product")


def check_loss(backend: Choice, dtype: torch.dtype, rows: int, vocabulary: int, *, weighted: bool) -> None:
    x, weight = leaf(rows, 24, dtype=dtype), leaf(vocabulary, 24, dtype=dtype)
    targets, weights = torch.randint(vocabulary, (rows,)), torch.rand(rows) if weighted else None

    def run() -> tuple[Tensor, ...]:
        return (linear_cross_entropy(quantise_tokens(x), Trained(weight), targets, weights),)

    reference, fused = compare(backend, run, [x, weight], dtype)
    assert_near(fused[0], reference[0], TOLERANCE[dtype], "loss")
    with torch.no_grad(), forced(backend):
        assert_near(run()[0], fused[0].detach(), 1e-6, "loss without gradient")
