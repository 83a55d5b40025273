"""The channel mixer: a gated linear unit whose three matrix products are ternary."""

# Shapes: B batch, T time, D model width, F inner width.

from torch import Tensor, nn

from rcdist.model.bitlinear import (
    GatedNorm,
    InputNorms,
    ProjectionBuilder,
    gain_of,
    project_layers,
    project_repeated,
    repeats,
)
from rcdist.model.init import InitKey
from rcdist.ops.factors import takes_factors
from rcdist.ops.gated import Repeated, takes_repeated


class GLU(nn.Module):
    """Mix channels: y = Q8(RMSNorm(SiLU(z (*) W_gate) (z (*) W_up))) (*) W_down with z = Q8(RMSNorm(x)).

    Shazeer 2020, arXiv:2002.05202 (SwiGLU); Zhu et al. 2024, arXiv:2406.02528, section 3.3.2.

    Args:
        builder: builds the projections as the plan says.
        layer: index of the block.
        init: key of this module.
    """

    def __init__(self, builder: ProjectionBuilder, layer: int, init: InitKey) -> None:
        super().__init__()
        config = builder.architecture.model
        self.separately = builder.separately
        # The public code has gate and up as one matrix: with norm=per_projection they have one norm between them.
        self.input = InputNorms(config, config.width, ("gate_up",), builder.separately)
        self.gate_proj = builder.build(layer, "G", init.at("gate_proj"))
        self.up_proj = builder.build(layer, "U", init.at("up_proj"))
        self.down_proj = builder.build(layer, "D", init.at("down_proj"))
        self.down_norm = GatedNorm(config.glu_width, config.norm_eps, config.rounding, "glu")

    def forward(self, x_BTD: Tensor, delta_BTD: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return x + delta, and what the unit adds to that, both in the dtype of x."""
        x_BTD, (z,) = self.input(x_BTD, delta_BTD)
        layers = [self.gate_proj, self.up_proj]
        gained = self.separately or not takes_factors(x_BTD)
        up_BTF: Tensor | Repeated
        up = self.up_proj
        if not gained and repeats(up) and takes_repeated(x_BTD, x_BTD.shape[-1], self.down_norm.rounding):
            gate_BTF, up_BTF = project_repeated(z, self.gate_proj, up)
        else:
            gate_BTF, up_BTF = project_layers([z, z], layers, separately=self.separately, gained=gained)
        factors = [None if gained else gain_of(layer) for layer in layers]
        y_BTD: Tensor = self.down_proj(*self.down_norm(gate_BTF, up_BTF, *factors))
        return x_BTD, y_BTD
