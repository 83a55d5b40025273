"""The token mixer: MLGRU, a gated linear recurrence whose only matrix products are ternary."""

# Shapes: B batch, T time, D model width, which is also the width of the state.

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rcdist.model.bitlinear import InputNorms, Norm, ProjectionBuilder
from rcdist.model.init import InitKey
from rcdist.ops.quantise import quantise_tokens
from rcdist.ops.scan import scan
from rcdist.plan import RESERVOIR_LETTER


class MLGRU(nn.Module):
    """Mix tokens along time (Zhu et al. 2024, arXiv:2406.02528, section 3.3.1).

        f = gamma + (1 - gamma) sigmoid(z (*) W_f)        z = Q8(RMSNorm(x)), (*) a ternary product
        c = SiLU(z (*) W_c)
        h[t] = f[t] h[t-1] + (1 - f[t]) c[t]
        y = Q8(RMSNorm(RMSNorm(z (*) W_g) SiLU(h))) (*) W_o

    readout_norm=state normalises h and puts SiLU on the gate instead. An inserted reservoir (our interpretation,
    placement post_scan) uses r = Q8(RMSNorm(h)) (*) W_r for h in the readout, or adds it to h.

    Args:
        builder: builds the projections as the plan says.
        layer: index of the block.
        init: key of this module.
    """

    def __init__(self, builder: ProjectionBuilder, layer: int, init: InitKey) -> None:
        super().__init__()
        config = builder.model_config
        self.readout_norm, self.rounding = config.readout_norm, config.rounding
        self.combine = builder.reservoir_config.combine
        self.input = InputNorms(config, config.width, ("f", "c", "g"))
        self.f_proj = builder.build(layer, "f", init.at("f_proj"))
        self.c_proj = builder.build(layer, "c", init.at("c_proj"))
        self.g_proj = builder.build(layer, "g", init.at("g_proj"))
        self.o_proj = builder.build(layer, "o", init.at("o_proj"))
        self.g_norm = Norm(config.width, config.norm_eps)
        self.o_norm = Norm(config.width, config.norm_eps)
        self.r_norm: Norm | None = None
        self.r_proj: nn.Module | None = None
        if builder.blocks[layer].insert:
            self.r_norm = Norm(config.width, config.norm_eps)
            self.r_proj = builder.build(layer, RESERVOIR_LETTER, init.at("r_proj"))

    def forward(
        self, x_BTD: Tensor, gamma_D: Tensor, starts_BT: Tensor | None = None, h0_BD: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run the mixer.

        Args:
            x_BTD: the residual stream.
            gamma_D: float32 lower bound of the forget gate, in [0, 1).
            starts_BT: bool, True where a document starts: the state is 0 before it.
            h0_BD: float32 state before the first token. Zeros when None.

        Returns:
            y_BTD in the dtype of x, to be added to x, and the float32 state after the last token.
        """
        for_f, for_c, for_g = self.input(x_BTD)
        # The gate decides over hundreds of steps how much stays, so it is float32 under bfloat16 too.
        f_BTD = torch.lerp(self.f_proj(*for_f).float().sigmoid(), torch.ones_like(gamma_D), gamma_D)
        c_BTD = F.silu(self.c_proj(*for_c))
        h_BTD, h_last_BD = scan(f_BTD, c_BTD, h0_BD, starts_BT)
        if self.r_proj is not None and self.r_norm is not None:
            r_BTD = self.r_proj(*quantise_tokens(self.r_norm(h_BTD), self.rounding))
            h_BTD = h_BTD + r_BTD if self.combine == "add" else r_BTD
        gate_BTD = self.g_proj(*for_g)
        if self.readout_norm == "gate":
            y_BTD = self.g_norm(gate_BTD) * F.silu(h_BTD)
        else:
            y_BTD = self.g_norm(h_BTD) * F.silu(gate_BTD)
        return self.o_proj(*quantise_tokens(self.o_norm(y_BTD), self.rounding)), h_last_BD
