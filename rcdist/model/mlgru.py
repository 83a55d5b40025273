"""The token mixer: MLGRU, a gated linear recurrence whose only matrix products are ternary."""

# Shapes: B batch, T time, D model width, S width of the state: D, or 2 D with placement token_shift.

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rcdist.config import Architecture
from rcdist.config.plan import RESERVOIR_LETTER
from rcdist.model.bitlinear import (
    FrozenLinear,
    GatedNorm,
    InputNorms,
    Layer,
    ProjectionBuilder,
    QuantisedNorm,
    gain_of,
    project_layers,
)
from rcdist.model.init import InitKey
from rcdist.ops.factors import scaled, takes_factors
from rcdist.ops.recurrence import echo_scan, reset_scan
from rcdist.ops.scan import forget_gate, gated_scan

Observer = Callable[[Tensor, Tensor], None]
"""Called with the forget gate f' and the states h, (B, T, D) each, of a forward pass."""


def state_width(architecture: Architecture) -> int:
    """Return the width S of a layer's state: h, and with placement token_shift what the token before adds."""
    inserts = any(block.insert for block in architecture.blocks)
    return architecture.model.width * (2 if inserts and architecture.reservoir.placement == "token_shift" else 1)


class MLGRU(nn.Module):
    """Mix tokens along time (Zhu et al. 2024, arXiv:2406.02528, section 3.3.1).

        f = gamma + (1 - gamma) sigmoid(z (*) W_f)        z = Q8(RMSNorm(x)), (*) a ternary product
        c = SiLU(z (*) W_c)
        h[t] = f[t] h[t-1] + (1 - f[t]) c[t]
        y = Q8(RMSNorm(RMSNorm(z (*) W_g) SiLU(h))) (*) W_o

    readout_norm=state normalises h and puts SiLU on the gate instead. leak_rate: f = 1 - leak_rate. output_gate=tied:
    the gate is f's product plus a bias of its own; none: there is no gate, y = Q8(RMSNorm(SiLU(h))) (*) W_o, or of h
    itself with readout_norm=state.

    An inserted reservoir W_r (our interpretation), by placement:
        post_scan    r = Q8(RMSNorm(h)) (*) W_r takes the place of h in the readout, or is added to it
        recurrent    c[t] = SiLU(z[t] (*) W_c + h[t-1] W_r), h in float32, neither normalised nor quantised
        reset_gate   c[t] = SiLU(z[t] (*) W_c + sigmoid(z[t] (*) W_r) h[t-1])
        token_shift  c[t] = SiLU(z[t] (*) W_c + z[t-1] (*) W_r)

    Args:
        builder: builds the projections as the plan says.
        layer: index of the block.
        init: key of this module.
    """

    def __init__(self, builder: ProjectionBuilder, layer: int, init: InitKey) -> None:
        super().__init__()
        config, reservoir = builder.architecture.model, builder.architecture.reservoir
        width, eps = config.width, config.norm_eps
        self.readout_norm, self.separately = config.readout_norm, builder.separately
        self.combine, self.output_gate, self.leak_rate = reservoir.combine, reservoir.output_gate, reservoir.leak_rate
        self.placement = reservoir.placement if builder.architecture.blocks[layer].insert else None
        self.state_width = state_width(builder.architecture)
        self.observer: Observer | None = None

        self.names = ("f",) * (self.leak_rate == "trained") + ("c",) + ("g",) * (self.output_gate == "full")
        self.names += ("r",) * (self.placement in ("reset_gate", "token_shift"))
        self.input = InputNorms(config, width, self.names, builder.separately)
        self.f_proj = builder.build(layer, "f", init.at("f_proj")) if self.leak_rate == "trained" else None
        self.c_proj = builder.build(layer, "c", init.at("c_proj"))
        self.g_proj = builder.build(layer, "g", init.at("g_proj")) if self.output_gate == "full" else None
        self.g_bias = nn.Parameter(torch.zeros(width)) if self.output_gate == "tied" else None
        self.o_proj = builder.build(layer, "o", init.at("o_proj"))
        self.o_norm = (
            QuantisedNorm(width, eps, config.rounding)
            if self.output_gate == "none"
            else GatedNorm(width, eps, config.rounding, "readout")
        )
        self.r_norm = QuantisedNorm(width, eps, config.rounding) if self.placement == "post_scan" else None
        self.r_proj: FrozenLinear | None = None
        if self.placement is not None:
            built = builder.build(layer, RESERVOIR_LETTER, init.at("r_proj"))
            assert isinstance(built, FrozenLinear)
            self.r_proj = built

    def forward(
        self,
        x_BTD: Tensor,
        gamma_D: Tensor | None,
        starts_BT: Tensor | None = None,
        h0_BS: Tensor | None = None,
        delta_BTD: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run the mixer.

        Args:
            x_BTD: the residual stream.
            gamma_D: float32 lower bound of the forget gate, in [0, 1); None with a fixed leak rate.
            starts_BT: bool, True where a document starts: the state is 0 before it.
            h0_BS: float32 state before the first token. Zeros when None.
            delta_BTD: is added to x first. None: nothing is.

        Returns:
            x + delta, and what the mixer adds to that, both in the dtype of x; and the float32 state after the last
            token.
        """
        width = x_BTD.shape[-1]
        x_BTD, inputs = self.input(x_BTD, delta_BTD)
        layers = [self._layers()[name] for name in self.names]
        gained = not self._leaves_gains(x_BTD)
        projected = project_layers(inputs, layers, separately=self.separately, gained=gained)
        pre = dict(zip(self.names, projected, strict=True))
        factors = {name: None if gained else gain_of(layer) for name, layer in zip(self.names, layers, strict=True)}
        h0_BD = None if h0_BS is None else h0_BS[:, :width]
        pushed_last_BD = None
        if self.placement == "token_shift":
            pushed_last_BD = pre["r"][:, -1]
            before_BD = None if h0_BS is None else h0_BS[:, width:]
            pre["c"] = pre["c"] + _shift(pre["r"], before_BD, starts_BT)
        h_BTD, last_BD = self._recur(pre, factors, gamma_D, h0_BD, starts_BT)
        if self.observer is not None:
            pf = self._forget(pre)
            pf = scaled(pf, factors.get("f")) if isinstance(pf, Tensor) else pf
            self.observer(forget_gate(pf, gamma_D, h_BTD), h_BTD)
        if self.placement == "post_scan":
            assert self.r_norm is not None and self.r_proj is not None
            r_BTD = self.r_proj(*self.r_norm(h_BTD)[1:])
            h_BTD = h_BTD + r_BTD if self.combine == "add" else r_BTD
        y_BTD: Tensor = self.o_proj(*self._read_out(h_BTD, pre, factors))
        state_BS = last_BD
        if self.state_width > width:
            second = torch.zeros_like(last_BD) if pushed_last_BD is None else pushed_last_BD.to(last_BD.dtype)
            state_BS = torch.cat([last_BD, second], -1)
        return x_BTD, y_BTD, state_BS

    def _layers(self) -> dict[str, Layer]:
        """Return the projections of the input by name."""
        found = {"f": self.f_proj, "c": self.c_proj, "g": self.g_proj, "r": self.r_proj}
        return {name: layer for name, layer in found.items() if layer is not None}

    def _forget(self, pre: dict[str, Tensor]) -> Tensor | float:
        """Return the forget gate's pre-activation, or the fixed gate itself."""
        return pre["f"] if self.leak_rate == "trained" else 1.0 - self.leak_rate

    def _leaves_gains(self, x_BTD: Tensor) -> bool:
        """Say whether scan and readout apply the gains of frozen projections: where nothing else reads them."""
        is_plain = self.placement in (None, "post_scan") and self.output_gate != "tied"
        return is_plain and not self.separately and takes_factors(x_BTD)

    def _recur(
        self,
        pre: dict[str, Tensor],
        factors: dict[str, Tensor | None],
        gamma_D: Tensor | None,
        h0_BD: Tensor | None,
        starts_BT: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        if self.placement in ("recurrent", "reset_gate"):
            assert self.r_proj is not None
            f_BTD = forget_gate(self._forget(pre), gamma_D, pre["c"])
            if self.placement == "reset_gate":
                return reset_scan(f_BTD, pre["c"], pre["r"].sigmoid(), h0_BD, starts_BT)
            matrix, scale = self.r_proj.linear_map()
            return echo_scan(f_BTD, pre["c"], matrix, scale, self.r_proj.gain, h0_BD, starts_BT)
        by = (factors.get("f"), factors["c"])
        return gated_scan(self._forget(pre), pre["c"], gamma_D, h0_BD, starts_BT, *by)

    def _read_out(self, h_BTD: Tensor, pre: dict[str, Tensor], factors: dict[str, Tensor | None]) -> tuple[Tensor, ...]:
        if self.output_gate == "none":
            parts: tuple[Tensor, ...] = self.o_norm(F.silu(h_BTD) if self.readout_norm == "gate" else h_BTD)
            return parts[1:]
        gate_BTD = pre["g"] if self.g_bias is None else pre["f"] + self.g_bias
        factor = factors.get("g")
        if self.readout_norm == "gate":
            gated: tuple[Tensor, ...] = self.o_norm(gate_BTD, h_BTD, factor, None)
        else:
            gated = self.o_norm(h_BTD, gate_BTD, None, factor)
        return gated


def _shift(pushed_BTD: Tensor, before_BD: Tensor | None, starts_BT: Tensor | None) -> Tensor:
    """Give each token what the token before it pushed; nothing where a document starts."""
    first_BD = torch.zeros_like(pushed_BTD[:, 0]) if before_BD is None else before_BD.to(pushed_BTD.dtype)
    shifted_BTD = torch.cat([first_BD.unsqueeze(1), pushed_BTD[:, :-1]], 1)
    return shifted_BTD if starts_BT is None else shifted_BTD.masked_fill(starts_BT.unsqueeze(-1), 0)
