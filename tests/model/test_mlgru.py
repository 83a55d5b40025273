"""The token mixer against its equations, written out in plain tensor operations."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rcdist.config import ModelConfig, ReservoirConfig
from rcdist.model.bitlinear import ProjectionBuilder
from rcdist.model.init import InitKey
from rcdist.model.mlgru import MLGRU
from rcdist.model.reservoir import build_bank
from rcdist.ops.quantise import quantise_tokens, quantise_weight
from rcdist.ops.scan import scan_reference


def build(plan: str, **settings: object) -> MLGRU:
    config = ModelConfig(num_layers=1, width=16, glu_width=24, **settings)
    combine = "add" if plan.endswith("+r") else "replace"
    reservoir = ReservoirConfig(plan=plan, combine=combine)
    mlgru = MLGRU(ProjectionBuilder(config, reservoir, build_bank(config, reservoir)), 0, InitKey(0, "mlgru"))
    generator = torch.Generator().manual_seed(0)
    for parameter in mlgru.parameters():
        if parameter.dim() == 1:
            parameter.data = torch.rand(parameter.shape, generator=generator) + 0.5
    return mlgru


def straight(q: object) -> Tensor:
    values = q.values if q.scale is None else q.values * q.scale
    return q.handle + (values - q.handle).detach()


def equations(m: MLGRU, x: Tensor, gamma: Tensor, starts: Tensor, h0: Tensor) -> tuple[Tensor, Tensor]:
    """Write MODEL section 1 out, with straight-through detach and the reference scan."""

    def norm(module: torch.nn.Module, value: Tensor) -> Tensor:
        return F.rms_norm(value, value.shape[-1:], module.weight, module.eps)

    def product(module: torch.nn.Module, z: Tensor) -> Tensor:
        q = straight(quantise_tokens(z, m.rounding))
        if hasattr(module, "weight"):
            return q @ straight(quantise_weight(module.weight, m.rounding)).t()
        return q @ (module.bank.matrix(module.key) * module.bank.scale(module.key)).t() * module.gain

    z = norm(m.input.norm, x)
    zf, zc, zg = [norm(own, z) for own in m.input.own] or [z, z, z]
    f = gamma + (1 - gamma) * torch.sigmoid(product(m.f_proj, zf))
    h, last = scan_reference(f, F.silu(product(m.c_proj, zc)), h0, starts)
    if m.r_proj is not None:
        r = product(m.r_proj, norm(m.r_norm, h))
        h = h + r if m.combine == "add" else r
    g = product(m.g_proj, zg)
    readout = norm(m.g_norm, g) * F.silu(h) if m.readout_norm == "gate" else norm(m.g_norm, h) * F.silu(g)
    return product(m.o_proj, norm(m.o_norm, readout)), last


PLANS = ["T", "fcgo@a", "c+r@a", "o+r"]


@pytest.mark.parametrize(
    ("plan", "norm", "readout_norm"), list(itertools.product(PLANS, ["shared", "per_projection"], ["gate", "state"]))
)
def test_equals_the_equations(plan: str, norm: str, readout_norm: str) -> None:
    # Without rounding: a value on the edge between two codes may fall either way, by the last bit of a norm.
    m = build(plan, norm=norm, readout_norm=readout_norm, rounding="identity")
    torch.manual_seed(0)
    x, gamma, h0 = torch.randn(2, 9, 16, requires_grad=True), torch.rand(16) * 0.9, torch.randn(2, 16)
    starts = torch.rand(2, 9) < 0.2
    dy, dlast = torch.randn(2, 9, 16), torch.randn(2, 16)
    results = []
    for run in (lambda: m(x, gamma, starts, h0), lambda: equations(m, x, gamma, starts, h0)):
        y, last = run()
        results.append((y, last, *torch.autograd.grad((y, last), (x, *m.parameters()), (dy, dlast))))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_rounding_acts_in_every_product() -> None:
    m = build("c@a+r")
    torch.manual_seed(0)
    x, gamma = torch.randn(2, 9, 16), torch.zeros(16)
    starts, h0 = torch.zeros(2, 9, dtype=torch.bool), torch.zeros(2, 16)
    found, expected = m(x, gamma)[0], equations(m, x, gamma, starts, h0)[0]
    assert (found - expected).abs().mean() < 0.01 * expected.abs().mean()
    m.rounding = m.input.rounding = m.f_proj.rounding = m.g_proj.rounding = m.o_proj.rounding = "identity"
    assert (m(x, gamma)[0] - expected).abs().mean() > 0.1 * expected.abs().mean()


def test_a_lower_bound_near_one_keeps_the_state() -> None:
    m = build("T")
    h0 = torch.randn(1, 16)
    _, last = m(torch.randn(1, 50, 16), torch.full((16,), 1 - 1e-7), None, h0)
    torch.testing.assert_close(last, h0, rtol=1e-4, atol=1e-4)
