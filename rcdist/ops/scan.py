"""The MLGRU recurrence along time: a reference loop for autograd, and a fast form with its own backward."""

# Shapes: B batch, T time, H state width.

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rcdist.ops.autograd import apply
from rcdist.ops.backend import twin_of
from rcdist.ops.factors import scaled, takes_factors


def gated_scan(
    pf_BTH: Tensor | float,
    pc_BTH: Tensor,
    gamma_H: Tensor | None = None,
    h0_BH: Tensor | None = None,
    starts_BT: Tensor | None = None,
    f_factor_H: Tensor | None = None,
    c_factor_H: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the MLGRU recurrence from its pre-activations: gate, lower bound, SiLU and document reset inside.

    f = gamma + (1 - gamma) sigmoid(pf);  c = SiLU(pc);  h[t] = f[t] h[t-1] + (1 - f[t]) c[t]

    Args:
        pf_BTH: pre-activation of the forget gate; or a number, the constant f.
        pc_BTH: pre-activation of the candidate, of the same dtype.
        gamma_H: lower bound of the forget gate, in [0, 1); None with a constant f.
        h0_BH: state before the first token. Zeros when None.
        starts_BT: bool, True where a document starts.
        f_factor_H: multiplies pf first: the gain of a frozen matrix (see `ops.factors`). None: 1.
        c_factor_H: multiplies pc first.

    Returns:
        h_BTH in the dtype of pc, and h_last_BH in float32 (float64 for float64).

    Cost: linear in T. Fused, one read of pf and pc and one write of h; saved for backward: pf, pc and h.
    """
    twin = twin_of("scan", pc_BTH)
    factors: tuple[Tensor | None, ...] = (f_factor_H, c_factor_H)
    if not takes_factors(pc_BTH):
        pf_BTH = scaled(pf_BTH, f_factor_H) if isinstance(pf_BTH, Tensor) else pf_BTH
        pc_BTH, factors = scaled(pc_BTH, c_factor_H), ()
    if twin is None:
        return scan(forget_gate(pf_BTH, gamma_H, pc_BTH), F.silu(pc_BTH), h0_BH, starts_BT)
    pf, constant = (pf_BTH, 0.0) if isinstance(pf_BTH, Tensor) else (None, pf_BTH)
    h_BTH, last_BH = apply(_GatedScan, twin, constant, pf, pc_BTH, gamma_H, h0_BH, starts_BT, *factors)
    return h_BTH, last_BH


class _GatedScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        twin: Any,
        constant: float,
        pf_BTH: Tensor | None,
        pc_BTH: Tensor,
        gamma_H: Tensor | None,
        h0_BH: Tensor | None,
        starts_BT: Tensor | None,
        *factors: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        pf, pc = None if pf_BTH is None else pf_BTH.contiguous(), pc_BTH.contiguous()
        gamma = None if gamma_H is None else gamma_H.float().contiguous()
        h0 = None if h0_BH is None else h0_BH.float().contiguous()
        starts = None if starts_BT is None else starts_BT.contiguous()
        h, last = twin.forward(constant, pf, pc, gamma, h0, starts, *factors)
        ctx.twin, ctx.constant = twin, constant
        ctx.dtypes = tuple(None if x is None else x.dtype for x in (gamma_H, h0_BH, *factors))
        ctx.save_for_backward(pf, pc, gamma, h0, starts, *factors, h)
        ctx.set_materialize_grads(False)
        return h, last

    @staticmethod
    def backward(ctx: Any, dh: Tensor | None, dlast: Tensor | None) -> tuple[Tensor | None, ...]:
        dpf, dpc, *rest = ctx.twin.backward(ctx.constant, *ctx.saved_tensors, dh, dlast)
        gradients = [
            None if dtype is None else gradient.to(dtype) for gradient, dtype in zip(rest, ctx.dtypes, strict=True)
        ]
        dgamma_H, dh0_BH, *dfactors = gradients
        return None, None, dpf, dpc, dgamma_H, dh0_BH, None, *dfactors


def forget_gate(pf_BTH: Tensor | float, gamma_H: Tensor | None, like_BTH: Tensor) -> Tensor:
    """Return f = gamma + (1 - gamma) sigmoid(pf), or the constant f, shaped like `like`, in float32 or wider."""
    # The gate decides over hundreds of steps how much stays, so it is float32 under bfloat16 too.
    wide = torch.promote_types(like_BTH.dtype, torch.float32)
    if not isinstance(pf_BTH, Tensor):
        return torch.full((), pf_BTH, dtype=wide, device=like_BTH.device).expand(like_BTH.shape)
    assert gamma_H is not None
    return torch.lerp(pf_BTH.to(wide).sigmoid(), torch.ones_like(gamma_H, dtype=wide), gamma_H.to(wide))


def scan(
    f_BTH: Tensor, c_BTH: Tensor, h0_BH: Tensor | None = None, starts_BT: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Run the MLGRU recurrence along time and return every state.

    h[t] = f[t] * h[t-1] + (1 - f[t]) * c[t], with h[t-1] = 0 where a document starts.

    Args:
        f_BTH: forget gate in (0, 1). A gate of 1 keeps the old state.
        c_BTH: candidate state, any float dtype; summed in float32 (float64 if f or c is).
        h0_BH: state before the first token. Zeros when None.
        starts_BT: bool, True where a document starts. None: nowhere (h0 alone says what came before).

    Returns:
        h_BTH in the dtype of c, and h_last_BH in float32: passing it back as h0 resumes the sequence.

    Cost: about 4 FLOPs per element forward and 8 backward, one operation per time step, no matrix product.
    Zhu et al. 2024, arXiv:2406.02528, section 3.3.1.
    """
    h_BTH, h_last_BH = _Scan.apply(f_BTH, c_BTH, h0_BH, starts_BT)
    return h_BTH, h_last_BH


def _state_dtype(f: Tensor, c: Tensor) -> torch.dtype:
    return torch.float64 if torch.float64 in (f.dtype, c.dtype) else torch.float32


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, f_BTH: Tensor, c_BTH: Tensor, h0_BH: Tensor | None, starts_BT: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        wide = _state_dtype(f_BTH, c_BTH)
        f, c = f_BTH.to(wide), c_BTH.to(wide)
        carry = _carry(f, starts_BT)
        # (1 - f) c, written over with the states; f = 1 leaves exactly nothing of c.
        h = torch.addcmul(c, f, c, value=-1)
        previous = torch.zeros_like(h[:, 0]) if h0_BH is None else h0_BH.to(wide)
        for carry_t, h_t in zip(carry.unbind(1), h.unbind(1), strict=True):
            previous = torch.addcmul(h_t, carry_t, previous, out=h_t)
        h_last = h[:, -1].clone()
        ctx.save_for_backward(f_BTH, c_BTH, h0_BH, starts_BT, h)
        ctx.set_materialize_grads(False)
        return h.to(c_BTH.dtype), h_last

    @staticmethod
    def backward(ctx: Any, dh_BTH: Tensor | None, dlast_BH: Tensor | None) -> tuple[Tensor | None, ...]:
        f_BTH, c_BTH, h0_BH, starts_BT, h = ctx.saved_tensors
        f, c = f_BTH.to(h.dtype), c_BTH.to(h.dtype)
        carry = _carry(f, starts_BT)
        dh = torch.zeros_like(h) if dh_BTH is None else dh_BTH.to(h.dtype, copy=True)
        if dlast_BH is not None:
            dh[:, -1] += dlast_BH
        carries, steps = carry.unbind(1), dh.unbind(1)
        for t in range(len(steps) - 2, -1, -1):
            torch.addcmul(steps[t], carries[t + 1], steps[t + 1], out=steps[t])
        df = dc = dh0 = None
        if ctx.needs_input_grad[0]:
            df = torch.zeros_like(h)
            df[:, 1:] = h[:, :-1]
            if h0_BH is not None:
                df[:, 0] = h0_BH
            if starts_BT is not None:
                df.masked_fill_(starts_BT.unsqueeze(-1), 0)
            df = df.sub_(c).mul_(dh).to(f_BTH.dtype)
        if h0_BH is not None and ctx.needs_input_grad[2]:
            dh0 = (carries[0] * steps[0]).to(h0_BH.dtype)
        if ctx.needs_input_grad[1]:
            dc = torch.addcmul(dh, dh, f, value=-1).to(c_BTH.dtype)
        return df, dc, dh0, None


def _carry(f: Tensor, starts_BT: Tensor | None) -> Tensor:
    """Return what multiplies the previous state: f, and 0 where a document starts."""
    return f if starts_BT is None else f.masked_fill(starts_BT.unsqueeze(-1), 0)
