"""The channel mixer: a gated linear unit whose three matrix products are ternary."""

# Shapes: B batch, T time, D model width, F inner width.

from torch import Tensor, nn
from torch.nn import functional as F

from rcdist.model.bitlinear import InputNorms, Norm, ProjectionBuilder
from rcdist.model.init import InitKey
from rcdist.ops.quantise import quantise_tokens


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
        config = builder.model_config
        self.rounding = config.rounding
        # The public code has gate and up as one matrix: with norm=per_projection they have one norm between them.
        self.input = InputNorms(config, config.width, ("gate_up",))
        self.gate_proj = builder.build(layer, "G", init.at("gate_proj"))
        self.up_proj = builder.build(layer, "U", init.at("up_proj"))
        self.down_proj = builder.build(layer, "D", init.at("down_proj"))
        self.down_norm = Norm(config.glu_width, config.norm_eps)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return y_BTD in the dtype of x, to be added to x."""
        (z,) = self.input(x_BTD)
        inner_BTF = F.silu(self.gate_proj(*z)) * self.up_proj(*z)
        y_BTD: Tensor = self.down_proj(*quantise_tokens(self.down_norm(inner_BTF), self.rounding))
        return y_BTD
