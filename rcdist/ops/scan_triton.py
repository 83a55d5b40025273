"""The MLGRU recurrence with its gates as Triton kernels, parallel over sequences, channels and stretches of time."""

# Shapes: B sequences, T time, H channels; C chunks of time. One program: one sequence, CHANNELS channels, one chunk.

import torch
import triton
import triton.language as tl
from torch import Tensor

from rcdist.ops.triton_common import column_sums, early, wait_for_inputs

_CHANNELS, _TILE = 64, 8
_STAGES, _BACK_STAGES = 3, 2
"""Steps of time and channels of a tile, and tiles whose loads are under way: the fastest on an H100, of 4 to 20 tried."""
_LEAST_CHUNK = 64
_ENOUGH = 2**17
"""Channels in flight, times chunks, that fill a device; fewer leave its memory idle while each waits for its loads."""


@triton.jit
def _chain(decay_1, state_1, decay_2, state_2):
    return decay_1 * decay_2, decay_2 * state_1 + state_2


@triton.jit(do_not_specialize=["half"])
def _forward_kernel(
    pf, pc, f_factor, c_factor, gamma, starts, before, h, end, decay, constant, time, width, half, chunk,
    HAS_F: tl.constexpr, F_FACTOR: tl.constexpr, C_FACTOR: tl.constexpr, HAS_STARTS: tl.constexpr,
    WRITE: tl.constexpr, CHANNELS: tl.constexpr, TILE: tl.constexpr, STAGES: tl.constexpr, EVEN: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    wait_for_inputs(EARLY)
    b, part, chunks = tl.program_id(1).to(tl.int64), tl.program_id(2), tl.num_programs(2)
    i = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    k = tl.arange(0, TILE)
    inside = i < width
    is_last = (k == TILE - 1)[:, None]
    place = (b * chunks + part) * width + i
    # As far as the compiler knows, rows are aligned to 4 bytes only: a thread then holds two channels for all of a
    # tile's time, and the scan exchanges nothing between threads.
    row = width
    if EVEN:
        row = half * 2
    low = tl.zeros([CHANNELS], tl.float32)
    if HAS_F:
        low = tl.load(gamma + i, mask=inside, other=0.0).to(tl.float32)
    if F_FACTOR:
        by_f = tl.load(f_factor + i, mask=inside, other=0.0).to(tl.float32)
    if C_FACTOR:
        by_c = tl.load(c_factor + i, mask=inside, other=0.0).to(tl.float32)
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
        at = (b * time + t)[:, None] * row + i[None, :]
        p = tl.load(pc + at, mask=here, other=0.0).to(tl.float32)
        if C_FACTOR:
            p *= by_c[None, :]
        # A minimum drops NaN unless told not to: a gate that is NaN must not pass for one that is shut.
        grown = 1.0 + tl.exp(tl.minimum(-p, 43.0, propagate_nan=tl.PropagateNan.ALL))
        if HAS_F:
            # One division for both gates: exponentials and divisions are what the kernel has least of.
            g = tl.load(pf + at, mask=here, other=0.0).to(tl.float32)
            if F_FACTOR:
                g *= by_f[None, :]
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
    pf, pc, f_factor, c_factor, gamma, starts, h0, h, dh, after, dpf, dpc, sums, begin, decay,
    constant, time, width, chunk, HAS_F: tl.constexpr, F_FACTOR: tl.constexpr, C_FACTOR: tl.constexpr,
    HAS_STARTS: tl.constexpr, HAS_H0: tl.constexpr, WRITE: tl.constexpr, CHANNELS: tl.constexpr, TILE: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    # carry: gradient of the state at the end of step t, with what step t's own output gets.
    b, part, chunks = tl.program_id(1).to(tl.int64), tl.program_id(2), tl.num_programs(2)
    i = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    k = tl.arange(0, TILE)
    inside = i < width
    is_last = (k == TILE - 1)[:, None]
    place = (b * chunks + part) * width + i
    low = tl.zeros([CHANNELS], tl.float32)
    if HAS_F:
        low = tl.load(gamma + i, mask=inside, other=0.0).to(tl.float32)
    by_f, by_c = tl.full([CHANNELS], 1.0, tl.float32), tl.full([CHANNELS], 1.0, tl.float32)
    if F_FACTOR:
        by_f = tl.load(f_factor + i, mask=inside, other=0.0).to(tl.float32)
    if C_FACTOR:
        by_c = tl.load(c_factor + i, mask=inside, other=0.0).to(tl.float32)
    carry = tl.zeros([CHANNELS], tl.float32)
    if WRITE:
        carry = tl.load(after + place, mask=inside, other=0.0)
    total = tl.full([CHANNELS], 1.0, tl.float32)
    bound = tl.zeros([TILE, CHANNELS], tl.float32)
    f_sums, c_sums = bound, bound
    first = part * chunk
    stop = tl.minimum(first + chunk, time)
    for t0 in tl.range(0, stop - first, TILE, num_stages=STAGES):
        t = stop - 1 - (t0 + k)
        here = (t >= first)[:, None] & inside[None, :]
        at = (b * time + t)[:, None] * width + i[None, :]
        # What the step after keeps of the state; of the chunk's last step `after` has it already.
        follows = here & (t < stop - 1)[:, None]
        if HAS_F:
            g = tl.load(pf + at + width, mask=follows, other=0.0).to(tl.float32) * by_f[None, :]
            kept = low[None, :] + (1.0 - low[None, :]) * tl.sigmoid(g)
        else:
            kept = tl.zeros([TILE, CHANNELS], tl.float32) + constant
        kept = tl.where(follows, kept, 1.0)
        if HAS_STARTS:
            begins = tl.load(starts + b * time + t + 1, mask=(t >= first) & (t < stop - 1), other=0)
            kept = tl.where((begins != 0)[:, None], 0.0, kept)
        gradient = tl.load(dh + at, mask=here, other=0.0).to(tl.float32)
        decays, states = tl.associative_scan((kept, gradient), 0, _chain)
        states = decays * carry[None, :] + states
        carry = tl.sum(tl.where(is_last, states, 0.0), 0)
        if WRITE:
            raw_c = tl.load(pc + at, mask=here, other=0.0).to(tl.float32)
            p = raw_c * by_c[None, :]
            a = tl.sigmoid(p)
            if HAS_F:
                raw_f = tl.load(pf + at, mask=here, other=0.0).to(tl.float32)
                s = tl.sigmoid(raw_f * by_f[None, :])
                f = low[None, :] + (1.0 - low[None, :]) * s
                previous = tl.load(h + at - width, mask=here & (t > 0)[:, None], other=0.0).to(tl.float32)
                if HAS_H0:
                    at_first = here & (t == 0)[:, None]
                    previous += tl.load(h0 + b * width + i[None, :] + 0 * t[:, None], mask=at_first, other=0.0)
                if HAS_STARTS:
                    begins = tl.load(starts + b * time + t, mask=t >= first, other=0)
                    previous = tl.where((begins != 0)[:, None], 0.0, previous)
                df = tl.where(here, (previous - p * a) * states, 0.0)
                bound += df * (1.0 - s)
                dg = df * (1.0 - low[None, :]) * s * (1.0 - s)
                if F_FACTOR:
                    f_sums += dg * raw_f
                tl.store(dpf + at, (dg * by_f[None, :]).to(dpf.dtype.element_ty), mask=here)
            else:
                f = tl.zeros([TILE, CHANNELS], tl.float32) + constant
            dp = tl.where(here, states * (1.0 - f) * a * (1.0 + p * (1.0 - a)), 0.0)
            if C_FACTOR:
                c_sums += dp * raw_c
            tl.store(dpc + at, (dp * by_c[None, :]).to(dpc.dtype.element_ty), mask=here)
        else:
            total *= tl.sum(tl.where(is_last, decays, 0.0), 0)
    # What the chunk's first step keeps of the state before.
    if HAS_F:
        g = tl.load(pf + (b * time + first) * width + i, mask=inside, other=0.0).to(tl.float32) * by_f
        kept_first = low + (1.0 - low) * tl.sigmoid(g)
    else:
        kept_first = tl.zeros([CHANNELS], tl.float32) + constant
    if HAS_STARTS:
        kept_first = tl.where(tl.load(starts + b * time + first) != 0, 0.0, kept_first)
    tl.store(begin + place, carry * kept_first, mask=inside)
    if WRITE:
        stride = tl.num_programs(1).to(tl.int64) * chunks * width
        tl.store(sums + place, tl.sum(bound, 0), mask=inside)
        if F_FACTOR:
            tl.store(sums + stride + place, tl.sum(f_sums, 0), mask=inside)
        if C_FACTOR:
            tl.store(sums + 2 * stride + place, tl.sum(c_sums, 0), mask=inside)
    else:
        tl.store(decay + place, total * kept_first, mask=inside)


def num_chunks(batch: int, time: int, width: int) -> int:
    """Return how many chunks time is cut into: one if sequences and channels alone fill the device."""
    wanted = triton.cdiv(_ENOUGH, batch * width)
    return 1 if wanted <= 2 else max(min(wanted, time // _LEAST_CHUNK), 1)


def _chunk(batch: int, time: int, width: int) -> tuple[int, int]:
    """Return the steps of a chunk of time, and how many chunks that makes."""
    chunk = triton.cdiv(triton.cdiv(time, num_chunks(batch, time, width)), _TILE) * _TILE
    return chunk, triton.cdiv(time, chunk)


def forward(
    constant: float,
    pf: Tensor | None,
    pc: Tensor,
    gamma: Tensor | None,
    h0: Tensor | None,
    starts: Tensor | None,
    f_factor: Tensor | None = None,
    c_factor: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the states, and the last one in float32.

    With few sequences, time is cut into chunks: a first pass finds how each chunk maps the state before it to the one
    after it, a small product over chunks gives every chunk its state, and a second pass writes the states.
    """
    batch, time, width = pc.shape
    chunk, chunks = _chunk(batch, time, width)
    end, decay = torch.empty(2, batch, chunks, width, device=pc.device)
    h = torch.empty_like(pc)
    grid = (triton.cdiv(width, _CHANNELS), batch, chunks)
    inputs, flags = _inputs(pf, pc, f_factor, c_factor, gamma, starts)

    def run(before: Tensor, *, write: bool) -> None:
        _forward_kernel[grid](
            *(*inputs, before, h, end, decay, constant, time, width, width // 2, chunk),
            **flags,
            EVEN=width % 2 == 0,
            WRITE=write,
            CHANNELS=_CHANNELS,
            TILE=_TILE,
            STAGES=_STAGES,
            num_warps=1,
            **early(batch * time, pc.device),
        )

    if chunks == 1:
        before = pc.new_zeros(batch, width, dtype=torch.float32) if h0 is None else h0
    else:
        run(decay, write=False)
        before = _through_chunks(h0, decay, end)
    run(before, write=True)
    return h, end[:, 0] if chunks == 1 else end[:, -1].clone()


def backward(
    constant: float,
    pf: Tensor | None,
    pc: Tensor,
    gamma: Tensor | None,
    h0: Tensor | None,
    starts: Tensor | None,
    f_factor: Tensor | None,
    c_factor: Tensor | None,
    h: Tensor,
    dh: Tensor | None,
    dlast: Tensor | None,
) -> tuple[Tensor | None, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of pf, pc, gamma, h0 and both factors (of those that there are)."""
    batch, time, width = pc.shape
    chunk, chunks = _chunk(batch, time, width)
    dh = torch.zeros_like(pc) if dh is None else dh.contiguous()
    dpf, dpc = None if pf is None else torch.empty_like(pf), torch.empty_like(pc)
    begin, decay = torch.empty(2, batch, chunks, width, device=pc.device)
    num_sums = 1 if f_factor is None and c_factor is None else 3
    sums = torch.empty(num_sums, batch * chunks, width, device=pc.device)
    grid = (triton.cdiv(width, _CHANNELS), batch, chunks)
    inputs, flags = _inputs(pf, pc, f_factor, c_factor, gamma, starts)

    def run(after: Tensor, *, write: bool) -> None:
        _backward_kernel[grid](
            *(*inputs, pc if h0 is None else h0, h, dh, after, pc if dpf is None else dpf, dpc, sums, begin, decay),
            *(constant, time, width, chunk),
            **flags,
            HAS_H0=h0 is not None,
            WRITE=write,
            CHANNELS=_CHANNELS,
            TILE=_TILE,
            STAGES=_BACK_STAGES,
            num_warps=1,
        )

    carry = None if dlast is None else dlast.float().contiguous()
    if chunks == 1:
        after = torch.zeros(batch, width, device=pc.device) if carry is None else carry
    else:
        run(decay, write=False)
        after = _through_chunks(carry, decay, begin, backwards=True)
    run(after, write=True)
    summed = column_sums(sums, torch.float32)
    return dpf, dpc, summed[0], begin[:, 0], summed[min(1, num_sums - 1)], summed[-1]


def _inputs(
    pf: Tensor | None,
    pc: Tensor,
    f_factor: Tensor | None,
    c_factor: Tensor | None,
    gamma: Tensor | None,
    starts: Tensor | None,
) -> tuple[list[Tensor], dict[str, bool]]:
    """Return what both kernels read, something else where there is nothing, and which there are."""
    starts = None if starts is None else starts.view(torch.uint8)
    optional = {"HAS_F": pf, "F_FACTOR": f_factor, "C_FACTOR": c_factor, "HAS_STARTS": starts}
    inputs = [pc if x is None else x for x in (pf, pc, f_factor, c_factor, gamma, starts)]
    return inputs, {name: x is not None for name, x in optional.items()}


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
