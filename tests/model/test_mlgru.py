"""The token mixer against its equations, written out in plain tensor operations."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rcdist.config import Architecture, ModelConfig, ReservoirConfig
from rcdist.model.bitlinear import ProjectionBuilder
from rcdist.model.init import InitKey
from rcdist.model.mlgru import MLGRU
from rcdist.model.reservoir import build_bank
from rcdist.ops.quantise import quantise_tokens, quantise_weight


def build(plan: str, dtype: torch.dtype = torch.float32, reservoir: dict | None = None, **settings: object) -> MLGRU:
    config = ModelConfig(num_layers=1, width=16, glu_width=24, **settings)
    combine = "add" if plan.endswith("+r") else "replace"
    chosen = ReservoirConfig(**{"plan": plan, "combine": combine, "block_size": 8} | (reservoir or {}))
    mlgru = MLGRU(
        ProjectionBuilder(Architecture(config, chosen), build_bank(Architecture(config, chosen))),
        0,
        InitKey(0, "mlgru"),
    )
    generator = torch.Generator().manual_seed(0)
    for parameter in mlgru.parameters():
        if parameter.dim() == 1:
            parameter.data = torch.rand(parameter.shape, generator=generator) + 0.5
    return mlgru.to(dtype)


def straight(q: object) -> Tensor:
    values = q.values if q.scale is None else q.values * q.scale
    return q.handle + (values - q.handle).detach()


def equations(m: MLGRU, x: Tensor, gamma: Tensor, starts: Tensor, h0: Tensor) -> tuple[Tensor, Tensor]:
    """Write MODEL section 1 out, with straight-through detach and the reference scan."""

    def norm(module: torch.nn.Module, value: Tensor) -> Tensor:
        return F.rms_norm(value, value.shape[-1:], module.weight, module.eps)

    rounding = m.c_proj.rounding if hasattr(m.c_proj, "rounding") else m.o_norm.rounding

    def product(module: torch.nn.Module, z: Tensor) -> Tensor:
        q = straight(quantise_tokens(z, rounding))
        if hasattr(module, "weight"):
            return q @ straight(quantise_weight(module.weight, rounding)).t()
        matrix, scale = module.linear_map()
        table = matrix.times(torch.eye(q.shape[-1], dtype=q.dtype)).t() * scale
        return q @ table.t() * module.gain

    z = norm(m.input.norm, x)
    zs = dict(zip(m.names, [norm(own, z) for own in m.input.own] or [z] * len(m.names), strict=True))
    forget = product(m.f_proj, zs["f"]) if m.f_proj is not None else None
    f = torch.full_like(x, 1 - m.leak_rate) if forget is None else gamma + (1 - gamma) * torch.sigmoid(forget)
    p = product(m.c_proj, zs["c"])
    matrix, scale = (None, 0.0) if m.r_proj is None else m.r_proj.linear_map()
    h, states, pushed = h0[:, :16], [], h0[:, 16:]
    for t in range(x.shape[1]):
        keep = (~starts[:, t]).to(x.dtype).unsqueeze(-1)
        h, u = h * keep, p[:, t]
        if m.placement == "recurrent":
            u = u + h @ (matrix.times(torch.eye(16, dtype=x.dtype)) * scale) * m.r_proj.gain
        elif m.placement == "reset_gate":
            u = u + torch.sigmoid(product(m.r_proj, zs["r"][:, t])) * h
        elif m.placement == "token_shift":
            u = u + pushed * keep
            pushed = product(m.r_proj, zs["r"][:, t])
        h = f[:, t] * h + (1 - f[:, t]) * F.silu(u)
        states.append(h)
    last = torch.cat([h, pushed], -1)
    h = torch.stack(states, 1)
    if m.placement == "post_scan":
        r = product(m.r_proj, norm(m.r_norm, h))
        h = h + r if m.combine == "add" else r
    if m.output_gate == "none":
        readout = F.silu(h) if m.readout_norm == "gate" else h
    else:
        g = product(m.g_proj, zs["g"]) if m.output_gate == "full" else forget + m.g_bias
        a, b = (g, h) if m.readout_norm == "gate" else (h, g)
        readout = F.rms_norm(a, (16,), m.o_norm.inner_weight, m.o_norm.eps) * F.silu(b)
    return product(m.o_proj, norm(m.o_norm, readout)), last


PLANS = ["T", "fcgo@a", "c+r@a", "o+r"]


CHOICES = [
    {"placement": placement, "topology": topology, **rest}
    for placement in ("recurrent", "reset_gate", "token_shift")
    for topology, rest in (
        ("dense", {}),
        ("block", {"output_gate": "tied"}),
        ("hadamard", {"output_gate": "none"}),
        ("ring", {"leak_rate": 0.3}),
    )
]
CHOICES += [{"plan": "g@a", "placement": "gate"}, {"plan": "f@a", "placement": "gate", "gate": "f"}]
CHOICES += [{"leak_rate": 0.3}, {"output_gate": "tied"}, {"output_gate": "none", "leak_rate": 1.0}]


def compare(m: MLGRU, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    x, gamma = torch.randn(2, 9, 16, dtype=dtype, requires_grad=True), torch.rand(16, dtype=dtype) * 0.9
    h0, starts = torch.randn(2, m.state_width, dtype=dtype), torch.rand(2, 9) < 0.2
    dy, dlast = torch.randn(2, 9, 16, dtype=dtype), torch.randn(2, m.state_width, dtype=dtype)
    results = []
    for run in (lambda: m(x, gamma, starts, h0), lambda: equations(m, x, gamma, starts, h0)):
        y, last = run()[-2:]
        results.append((y, last, *torch.autograd.grad((y, last), (x, *m.parameters()), (dy, dlast))))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("plan", "norm", "readout_norm"), list(itertools.product(PLANS, ["shared", "per_projection"], ["gate", "state"]))
)
def test_equals_the_equations(plan: str, norm: str, readout_norm: str) -> None:
    # Without rounding: a value on the edge between two codes may fall either way, by the last bit of a norm.
    m = build(plan, norm=norm, readout_norm=readout_norm, rounding="identity")
    compare(m, torch.float32, 1e-4)


@pytest.mark.parametrize("norm", ["shared", "per_projection"])
@pytest.mark.parametrize("readout_norm", ["gate", "state"])
@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: "-".join(str(value) for value in choice.values()))
def test_every_placement_equals_its_equations(choice: dict, norm: str, readout_norm: str) -> None:
    plan = "c+r@a" if choice.get("placement", "gate") != "gate" else "c"
    settings = {"norm": norm, "readout_norm": readout_norm, "rounding": "identity"}
    compare(build(plan, torch.float64, choice, **settings), torch.float64, 1e-9)


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: "-".join(str(value) for value in choice.values()))
def test_gradcheck(choice: dict) -> None:
    plan = "c+r@a" if choice.get("placement", "gate") != "gate" else "c"
    m = build(plan, torch.float64, choice, rounding="identity")
    torch.manual_seed(0)
    x, h0 = (torch.randn(shape, dtype=torch.float64) for shape in ((1, 3, 16), (1, m.state_width)))
    gamma, starts = torch.rand(16, dtype=torch.float64) * 0.9, torch.tensor([[False, False, True]])
    names = [name for name, _ in m.named_parameters()]

    def run(x: Tensor, h0: Tensor, *values: Tensor) -> tuple[Tensor, Tensor]:
        return torch.func.functional_call(m, dict(zip(names, values, strict=True)), (x, gamma, starts, h0))

    leaves = (x, h0, *(parameter.detach().clone() for parameter in m.parameters()))
    assert torch.autograd.gradcheck(run, tuple(leaf.requires_grad_() for leaf in leaves), fast_mode=True)


def test_rounding_acts_in_every_product() -> None:
    m = build("c@a+r")
    torch.manual_seed(0)
    x, gamma = torch.randn(2, 9, 16), torch.zeros(16)
    starts, h0 = torch.zeros(2, 9, dtype=torch.bool), torch.zeros(2, 16)
    found, expected = m(x, gamma)[1], equations(m, x, gamma, starts, h0)[0]
    assert (found - expected).abs().mean() < 0.01 * expected.abs().mean()
    for module in m.modules():
        module.rounding = "identity"
    assert (m(x, gamma)[1] - expected).abs().mean() > 0.1 * expected.abs().mean()


def test_a_lower_bound_near_one_keeps_the_state() -> None:
    m = build("T")
    h0 = torch.randn(1, 16)
    *_, last = m(torch.randn(1, 50, 16), torch.full((16,), 1 - 1e-7), None, h0)
    torch.testing.assert_close(last, h0, rtol=1e-4, atol=1e-4)
