"""Recurrences whose candidate reads the old state, sequential in time: a leaky echo-state network, a gated reset."""

# Shapes: B batch, T time, H state width.

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rcdist.ops.topology import LinearMap


def echo_scan(
    f_BTH: Tensor,
    p_BTH: Tensor,
    matrix: LinearMap,
    scale: float,
    gain_H: Tensor | None = None,
    h0_BH: Tensor | None = None,
    starts_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run a leaky echo-state network along time whose leak is given, and return every state.

    c[t] = SiLU(p[t] + (h[t-1] (A * scale)^T) * gain)
    h[t] = f[t] * h[t-1] + (1 - f[t]) * c[t], with h[t-1] = 0 where a document starts.

    Args:
        f_BTH: forget gate in [0, 1], 1 - leak rate.
        p_BTH: the input's part of the pre-activation, any float dtype; computed in float32 (float64 if f or p is).
        matrix: square map A of the reservoir, from a topology's `linear_map`.
        scale: multiplies A.
        gain_H: trained gain of each output channel of A. None: 1.
        h0_BH: state before the first token. Zeros when None.
        starts_BT: bool, True where a document starts.

    Returns:
        h_BTH in the dtype of p, and the last state in float32.

    Cost: one product of A per time step forward and one backward, not parallel in time.
    Jaeger et al. 2007, "Optimization and applications of echo state networks with leaky-integrator neurons", eq. 2.
    """
    h_BTH, h_last_BH = _Recurrence.apply(f_BTH, p_BTH, None, gain_H, h0_BH, starts_BT, matrix, scale)
    return h_BTH, h_last_BH


def reset_scan(
    f_BTH: Tensor, p_BTH: Tensor, r_BTH: Tensor, h0_BH: Tensor | None = None, starts_BT: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Run a gated recurrence whose candidate reads the old state through a reset gate.

    c[t] = SiLU(p[t] + r[t] * h[t-1])
    h[t] = f[t] * h[t-1] + (1 - f[t]) * c[t], with h[t-1] = 0 where a document starts.

    Args:
        r_BTH: reset gate.

    The rest as `echo_scan`. Cost: about 12 FLOPs per element forward and 20 backward, element-wise, not parallel in
    time. Cho et al. 2014, arXiv:1406.1078, section 2.3, with an element-wise recurrence.
    """
    h_BTH, h_last_BH = _Recurrence.apply(f_BTH, p_BTH, r_BTH, None, h0_BH, starts_BT, None, 1.0)
    return h_BTH, h_last_BH


class _Recurrence(torch.autograd.Function):
    """Keep both loops short: whatever does not depend on the state before is computed for all steps at once."""

    @staticmethod
    def forward(
        ctx: Any,
        f_BTH: Tensor,
        p_BTH: Tensor,
        r_BTH: Tensor | None,
        gain_H: Tensor | None,
        h0_BH: Tensor | None,
        starts_BT: Tensor | None,
        matrix: LinearMap | None,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        wide = torch.float64 if torch.float64 in (f_BTH.dtype, p_BTH.dtype) else torch.float32
        f_TBH, p_TBH = _by_time(f_BTH, wide), _by_time(p_BTH, wide)
        r_TBH = None if r_BTH is None else _by_time(r_BTH, wide)
        keep_TB1 = None if starts_BT is None else (~starts_BT).t().unsqueeze(-1).to(wide)
        weight = None if gain_H is None else gain_H.to(wide) * scale
        matrix = None if matrix is None else matrix.to(wide)
        h = torch.zeros_like(p_TBH[0]) if h0_BH is None else h0_BH.to(wide)
        previous_TBH, u_TBH = torch.empty_like(p_TBH), torch.empty_like(p_TBH)
        for t in range(len(p_TBH)):
            if keep_TB1 is not None:
                h = h * keep_TB1[t]
            previous_TBH[t] = h
            if r_TBH is not None:
                torch.addcmul(p_TBH[t], r_TBH[t], h, out=u_TBH[t])
            else:
                assert matrix is not None
                pushed = matrix.times(h)
                if weight is None:
                    torch.add(p_TBH[t], pushed, alpha=scale, out=u_TBH[t])
                else:
                    torch.addcmul(p_TBH[t], pushed, weight, out=u_TBH[t])
            h = torch.lerp(F.silu(u_TBH[t]), h, f_TBH[t])
        h_TBH = torch.cat([previous_TBH[1:], h.unsqueeze(0)])
        if keep_TB1 is not None:
            # What was kept is 0 where the next token starts a document; the state itself is not.
            h_TBH[:-1] = torch.lerp(F.silu(u_TBH[:-1]), previous_TBH[:-1], f_TBH[:-1])
        ctx.matrix, ctx.scale = matrix, scale
        ctx.dtypes = (f_BTH.dtype, p_BTH.dtype)
        ctx.save_for_backward(f_TBH, u_TBH, previous_TBH, r_TBH, keep_TB1, gain_H, h0_BH, r_BTH)
        ctx.set_materialize_grads(False)
        return h_TBH.transpose(0, 1).to(p_BTH.dtype), h

    @staticmethod
    def backward(ctx: Any, dh_BTH: Tensor | None, dlast_BH: Tensor | None) -> tuple[Tensor | None, ...]:
        f, u, previous, r, keep_TB1, gain_H, h0_BH, r_BTH = ctx.saved_tensors
        matrix, scale = ctx.matrix, ctx.scale
        dh = torch.zeros_like(u) if dh_BTH is None else dh_BTH.transpose(0, 1).to(u.dtype, copy=True)
        if dlast_BH is not None:
            dh[-1] += dlast_BH
        sigmoid = u.sigmoid()
        c = u * sigmoid
        # d h / d u, for every step at once.
        slope = (1 - f) * (sigmoid * (1 + u * (1 - sigmoid)))
        weight = scale if gain_H is None else gain_H.to(u.dtype) * scale
        carry = f if r is None else torch.addcmul(f, r, slope)
        dprevious = torch.zeros_like(dh[0])
        for t in range(len(u) - 1, -1, -1):
            if t + 1 < len(u):
                dh[t] += dprevious
            dprevious = carry[t] * dh[t]
            if r is None:
                dprevious += matrix.times_transposed(dh[t] * slope[t] * weight)
            if keep_TB1 is not None:
                dprevious *= keep_TB1[t]
        du = slope * dh
        need = ctx.needs_input_grad
        df = dp = dr = dgain = dh0 = None
        if need[0]:
            df = ((previous - c) * dh).transpose(0, 1).to(ctx.dtypes[0])
        if need[1]:
            dp = du.transpose(0, 1).to(ctx.dtypes[1])
        if need[2]:
            dr = (du * previous).transpose(0, 1).to(r_BTH.dtype)
        if need[3]:
            pushed = matrix.times(previous.flatten(0, 1)).view_as(previous)
            dgain = (du * pushed).sum((0, 1)).mul_(scale).to(gain_H.dtype)
        if h0_BH is not None and need[4]:
            dh0 = dprevious.to(h0_BH.dtype)
        return df, dp, dr, dgain, dh0, None, None, None


def _by_time(x_BTH: Tensor, dtype: torch.dtype) -> Tensor:
    return x_BTH.transpose(0, 1).to(dtype).contiguous()
