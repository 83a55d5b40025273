"""The channel mixer against its equation."""

import pytest
import torch
from torch.nn import functional as F

from rcdist.config import Architecture, ModelConfig, ReservoirConfig
from rcdist.model.bitlinear import ProjectionBuilder
from rcdist.model.glu import GLU
from rcdist.model.init import InitKey
from rcdist.model.reservoir import build_bank


@pytest.mark.parametrize("norm", ["shared", "per_projection"])
def test_equals_the_equation(norm: str) -> None:
    config = ModelConfig(num_layers=1, width=16, glu_width=24, norm=norm, rounding="identity")
    reservoir = ReservoirConfig(plan="G@a")
    bank = build_bank(Architecture(config, reservoir))
    glu = GLU(ProjectionBuilder(Architecture(config, reservoir), bank), 0, InitKey(0, "glu"))
    x = torch.randn(2, 7, 16, requires_grad=True)
    gate_matrix = bank.matrix("G@a") * bank.scale("G@a")

    def equation() -> torch.Tensor:
        z = F.rms_norm(x, (16,), glu.input.norm.weight, 1e-6)
        for own in glu.input.own:
            z = F.rms_norm(z, (16,), own.weight, 1e-6)
        inner = F.silu(z @ gate_matrix.t() * glu.gate_proj.gain) * (z @ glu.up_proj.weight.t())
        return F.rms_norm(inner, (24,), glu.down_norm.weight, 1e-6) @ glu.down_proj.weight.t()

    dy = torch.randn(2, 7, 16)
    for found, expected in zip(
        (glu(x)[1], *torch.autograd.grad(glu(x)[1], (x, *glu.parameters()), dy)),
        (equation(), *torch.autograd.grad(equation(), (x, *glu.parameters()), dy)),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
