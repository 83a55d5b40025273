"""The MLGRU recurrence with its gates as Triton kernels, parallel over sequences, channels and stretches of time."""

# Shapes: B sequences, T time, H channels; C chunks of time. One program: one sequence, CHANNELS channels, one chunk.

import torch
import triton
import triton.language as tl
from torch import Tensor

from rcdist.ops.triton_common import column_sums

_CHANNELS = 32
_UNROLL = 32
_TILE, _TILE_CHANNELS, _STAGES = 16, 64, 3
"""Of the forward pass; the fastest of 20 combinations on an H200."""
_ENOUGH = 2**17
"""Channels in flight, times chunks, that fill a device; fewer leave its memory idle while each waits for its loads."""


@triton.jit
def _chain(decay_1, state_1, decay_2, state_2):
    return decay_1 * decay_2, decay_2 * state_1 + state_2


@triton.jit
def _forward_kernel(
    pf, pc, gamma, starts, before, h, end, decay, constant, time, width, chunk,
    HAS_F: tl.constexpr, HAS_STARTS: tl.constexpr, WRITE: tl.constexpr, CHANNELS: tl.constexpr, TILE: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    b, part, chunks = tl.program_id(1).to(tl.int64), tl.program_id(2), tl.num_programs(2)
    i = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    k = tl.arange(0, TILE)
    inside = i < width
    is_last = (k == TILE - 1)[:, None]
    place = (b * chunks + part) * width + i
    low = tl.zeros([CHANNELS], tl.float32)
    if HAS_F:
        low = tl.load(gamma + i, mask=inside, other=0.0).to(tl.float32)
    state = tl.zeros([CHANNELS], tl.float32)
    if WRITE:
        state = tl.load(before + place, mask=inside, other=0.0)
    total = tl.full([CHANNELS], 1.0, tl.float32)
    first = part * chunk
    stop = tl.minimum(first + chunk, time)
    # Tiles of time: their loads are one instruction each and run ahead, which stores between them would not allow.
    for t0 in tl.range(first, stop, TILE, num_stages=STAGES):
        t = t0 + k
        here = (t < stop)[:, None] & inside[None, :]
        at = (b * time + t)[:, None] * width + i[None, :]
        p = tl.load(pc + at, mask=here, other=0.0).to(tl.float32)
        # A minimum drops NaN unless told not to: a gate that is NaN must not pass for one that is shut.
        grown = 1.0 + tl.exp(tl.minimum(-p, 43.0, propagate_nan=tl.PropagateNan.ALL))
        if HAS_F:
            # One division for both gates: exponentials and divisions are what the kernel has least of.
            g = tl.load(pf + at, mask=here, other=0.0).to(tl.float32)
            opened = 1.0 + tl.exp(tl.minimum(-g, 43.0, propagate_nan=tl.PropagateNan.ALL))
            both = 1.0 / (grown * opened)
            f = low[None, :] + (1.0 - low[None, :]) * (both * grown)
            c = p * (both * opened)
        else:
            f = tl.zeros_like(p) + constant
            c = p / grown
        f = tl.where(here, f, 1.0)
        kept = f
        if HAS_STARTS:
            begins = tl.load(starts + b * time + t, mask=t < stop, other=0)
            kept = tl.where((begins != 0)[:, None], 0.0, f)
        decays, states = tl.associative_scan((kept, (1.0 - f) * c), 0, _chain)
        states = decays * state[None, :] + states
        state = tl.sum(tl.where(is_last, states, 0.0), 0)
        if WRITE:
            tl.store(h + at, states.to(h.dtype.element_ty), mask=here)
        else:
            total *= tl.sum(tl.where(is_last, decays, 0.0), 0)
    tl.store(end + place, state, mask=inside)
    if not WRITE:
        tl.store(decay + place, total, mask=inside)


@triton.jit
def _backward_kernel(
    pf, pc, gamma, starts, h0, h, dh, after, dpf, dpc, dgamma, begin, decay, constant, time, width, chunk,
    HAS_F: tl.constexpr, HAS_STARTS: tl.constexpr, HAS_H0: tl.constexpr, WRITE: tl.constexpr,
    CHANNELS: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    # carry: gradient of the state at the end of step t, without what step t's own output gets.
    b, part, chunks = tl.program_id(1).to(tl.int64), tl.program_id(2), tl.num_programs(2)
    i = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    inside = i < width
    place = (b * chunks + part) * width + i
    low = tl.zeros([CHANNELS], tl.float32)
    if HAS_F:
        low = tl.load(gamma + i, mask=inside, other=0.0).to(tl.float32)
    carry = tl.zeros([CHANNELS], tl.float32)
    if WRITE:
        carry = tl.load(after + place, mask=inside, other=0.0)
    total = tl.full([CHANNELS], 1.0, tl.float32)
    bound = tl.zeros([CHANNELS], tl.float32)
    zero = tl.zeros([CHANNELS], tl.int32)
    first = part * chunk
    stop = tl.minimum(first + chunk, time)
    steps = tl.cdiv(stop - first, UNROLL)
    for block in range(steps):
        for k in tl.static_range(UNROLL):
            t = stop - 1 - (block * UNROLL + k)
            here = inside & (zero + t >= first)
            at = (b * time + t) * width + i
            if HAS_F:
                s = tl.sigmoid(tl.load(pf + at, mask=here, other=0.0).to(tl.float32))
                f = tl.where(here, low + (1.0 - low) * s, 1.0)
            else:
                f = tl.where(here, tl.zeros_like(low) + constant, 1.0)
            kept = f
            if HAS_STARTS:
                begins = tl.load(starts + b * time + tl.maximum(t, 0))
                kept = tl.where((begins != 0) & here, 0.0, f)
            carry += tl.load(dh + at, mask=here, other=0.0).to(tl.float32)
            if WRITE:
                p = tl.load(pc + at, mask=here, other=0.0).to(tl.float32)
                a = tl.sigmoid(p)
                slope = a * (1.0 + p * (1.0 - a))
                tl.store(dpc + at, (carry * (1.0 - f) * slope).to(dpc.dtype.element_ty), mask=here)
                if HAS_F:
                    previous = tl.load(h + at - width, mask=here & (zero + t > 0), other=0.0).to(tl.float32)
                    if HAS_H0:
                        previous += tl.load(h0 + b * width + i, mask=here & (zero + t == 0), other=0.0)
                    if HAS_STARTS:
                        previous = tl.where((begins != 0) & here, 0.0, previous)
                    df = (previous - p * a) * carry
                    bound += tl.where(here, df * (1.0 - s), 0.0)
                    slope = (1.0 - low) * s * (1.0 - s)
                    tl.store(dpf + at, (df * slope).to(dpf.dtype.element_ty), mask=here)
            else:
                total *= kept
            carry *= kept
    tl.store(begin + place, carry, mask=inside)
    if WRITE:
        tl.store(dgamma + place, bound, mask=inside)
    else:
        tl.store(decay + place, total, mask=inside)


def num_chunks(batch: int, time: int, width: int) -> int:
    """Return how many chunks time is cut into: one if sequences and channels alone fill the device."""
    wanted = triton.cdiv(_ENOUGH, batch * width)
    return 1 if wanted <= 2 else max(min(wanted, time // (2 * _UNROLL)), 1)


def _chunk(batch: int, time: int, width: int) -> tuple[int, int]:
    """Return the steps of a chunk of time, and how many chunks that makes."""
    chunk = triton.cdiv(triton.cdiv(time, num_chunks(batch, time, width)), _UNROLL) * _UNROLL
    return chunk, triton.cdiv(time, chunk)


def forward(
    constant: float,
    pf: Tensor | None,
    pc: Tensor,
    gamma: Tensor | None,
    h0: Tensor | None,
    starts: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return the states, and the last one in float32.

    With few sequences, time is cut into chunks: a first pass finds how each chunk maps the state before it to the one
    after it, a small product over chunks gives every chunk its state, and a second pass writes the states.
    """
    batch, time, width = pc.shape
    chunk, chunks = _chunk(batch, time, width)
    starts = None if starts is None else starts.view(torch.uint8)
    end, decay = torch.empty(2, batch, chunks, width, device=pc.device)
    h = torch.empty_like(pc)
    grid = (triton.cdiv(width, _TILE_CHANNELS), batch, chunks)

    def run(before: Tensor, *, write: bool) -> None:
        _forward_kernel[grid](
            *(
                pc if pf is None else pf,
                pc,
                pc if gamma is None else gamma,
                pc if starts is None else starts,
            ),
            *(before, h, end, decay, constant, time, width, chunk),
            HAS_F=pf is not None,
            HAS_STARTS=starts is not None,
            WRITE=write,
            CHANNELS=_TILE_CHANNELS,
            TILE=_TILE,
            STAGES=_STAGES,
            num_warps=1,
        )

    if chunks == 1:
        before = pc.new_zeros(batch, width, dtype=torch.float32) if h0 is None else h0
    else:
        run(decay, write=False)
        before = _through_chunks(h0, decay, end)
    run(before, write=True)
    return h, end[:, -1].clone()


def backward(
    constant: float,
    pf: Tensor | None,
    pc: Tensor,
    gamma: Tensor | None,
    h0: Tensor | None,
    starts: Tensor | None,
    h: Tensor,
    dh: Tensor | None,
    dlast: Tensor | None,
) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
    """Return the gradients of pf, pc, gamma and h0."""
    batch, time, width = pc.shape
    chunk, chunks = _chunk(batch, time, width)
    starts = None if starts is None else starts.view(torch.uint8)
    dh = torch.zeros_like(pc) if dh is None else dh.contiguous()
    dpf, dpc = None if pf is None else torch.empty_like(pf), torch.empty_like(pc)
    begin, decay, dgamma = torch.empty(3, batch, chunks, width, device=pc.device)
    grid = (triton.cdiv(width, _CHANNELS), batch, chunks)

    def run(after: Tensor, *, write: bool) -> None:
        _backward_kernel[grid](
            *(
                pc if pf is None else pf,
                pc,
                pc if gamma is None else gamma,
                pc if starts is None else starts,
            ),
            *(pc if h0 is None else h0, h, dh, after, pc if dpf is None else dpf, dpc, dgamma, begin, decay),
            *(constant, time, width, chunk),
            HAS_F=pf is not None,
            HAS_STARTS=starts is not None,
            HAS_H0=h0 is not None,
            WRITE=write,
            CHANNELS=_CHANNELS,
            UNROLL=_UNROLL,
            num_warps=1,
        )

    carry = None if dlast is None else dlast.float().contiguous()
    if chunks == 1:
        after = torch.zeros(batch, width, device=pc.device) if carry is None else carry
    else:
        run(decay, write=False)
        after = _through_chunks(carry, decay, begin, backwards=True)
    run(after, write=True)
    return dpf, dpc, column_sums(dgamma.view(1, batch * chunks, width), torch.float32)[0], begin[:, 0]


@triton.jit
def _chunks_kernel(
    state, decay, end, before, chunks, width,
    HAS_STATE: tl.constexpr, BACKWARDS: tl.constexpr, CHUNKS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    k = tl.arange(0, CHUNKS)
    inside = i < width
    here = (k < chunks)[:, None] & inside[None, :]
    place, first_place, next_place = k, b * 0, 1
    if BACKWARDS:
        place, first_place, next_place = chunks - 1 - k, b * 0 + chunks - 1, -1
    at = (b * chunks + place)[:, None] * width + i[None, :]
    decays = tl.load(decay + at, mask=here, other=1.0)
    ends = tl.load(end + at, mask=here, other=0.0)
    first = tl.zeros([CHANNELS], tl.float32)
    if HAS_STATE:
        first = tl.load(state + b * width + i, mask=inside, other=0.0)
    decays, states = tl.associative_scan((decays, ends), 0, _chain)
    tl.store(before + (b * chunks + first_place) * width + i, first, mask=inside)
    # What a chunk leaves is what the next one finds.
    after = decays * first[None, :] + states
    tl.store(before + at + next_place * width, after, mask=here & (k < chunks - 1)[:, None])


def _through_chunks(state_BH: Tensor | None, decay_BCH: Tensor, end_BCH: Tensor, *, backwards: bool = False) -> Tensor:
    """Return the state before every chunk, (B, C, H), from what each chunk does to a state; backwards: from the end."""
    batch, chunks, width = decay_BCH.shape
    before_BCH = torch.empty_like(decay_BCH)
    _chunks_kernel[(triton.cdiv(width, _CHANNELS), batch)](
        *(decay_BCH if state_BH is None else state_BH, decay_BCH, end_BCH, before_BCH, chunks, width),
        HAS_STATE=state_BH is not None,
        BACKWARDS=backwards,
        CHUNKS=triton.next_power_of_2(chunks),
        CHANNELS=_CHANNELS,
        num_warps=4,
    )
    return before_BCH
