"""Head product and cross-entropy in one on a CPU: logits are integer sums of a few rows at a time."""

# Shapes: M positions, K width, V vocabulary.

import functools

import torch
from torch import Tensor

from rcdist.ops.int8_matmul import int8_matmul
from rcdist.ops.matmul import matmul, product_dtype
from rcdist.ops.native import call
from rcdist.ops.project_cpu import scale_rows

_CHUNK = 2**22
"""Logits that exist at a time: 16 MiB of sums and as much of gradient in float32."""

_SUMMED = 2**13
"""Terms of one float32 sum: MKL adds them one after the other, and 65,537 lost two digits more than these."""


def _matmul_in_parts(dlogits_MV: Tensor, matrix_VK: Tensor) -> Tensor:
    """Multiply, summing over _SUMMED entries of the vocabulary at a time."""
    if len(matrix_VK) <= _SUMMED:
        return matmul(dlogits_MV, matrix_VK)
    parts = zip(dlogits_MV.split(_SUMMED, 1), matrix_VK.split(_SUMMED), strict=True)
    return functools.reduce(torch.add, (matmul(dlogits, matrix) for dlogits, matrix in parts))


def forward(
    dtype: torch.dtype,
    values_MK: Tensor,
    rows_M: Tensor,
    ternary_VK: Tensor,
    beta: Tensor,
    targets_M: Tensor,
    weights_M: Tensor,
    *,
    is_trained: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the loss, and where it is trained the gradients of tokens and head for a gradient of 1 of the loss."""
    wide = product_dtype(dtype)
    num_rows, vocabulary = len(values_MK), len(ternary_VK)
    if num_rows and not 0 <= int(targets_M.min()) <= int(targets_M.max()) < vocabulary:
        raise IndexError(f"a target is not in [0, {vocabulary}): {int(targets_M.min())} to {int(targets_M.max())}")
    chunk = max(min(_CHUNK // vocabulary, num_rows), 1)
    like, sums = torch.empty(0, dtype=dtype), torch.empty(chunk, vocabulary, dtype=torch.int32)
    nats = torch.empty(num_rows, dtype=torch.float64)
    dlogits = dtokens_MK = dweight_VK = matrix_VK = None
    if is_trained:
        dlogits = torch.empty(chunk, vocabulary, dtype=wide)
        dtokens_MK = torch.empty(values_MK.shape, dtype=dtype)
        dweight_VK = torch.zeros(ternary_VK.shape)
        matrix_VK = scale_rows(ternary_VK, beta.expand(vocabulary).contiguous(), wide)
    for first in range(0, num_rows, chunk):
        part = slice(first, min(first + chunk, num_rows))
        codes, count = values_MK[part], part.stop - first
        int8_matmul(codes, ternary_VK, out=sums[:count])
        call(
            "cross_entropy",
            like if dlogits is None else dlogits,
            *(sums[:count], rows_M[part], float(beta), targets_M[part], weights_M[part], nats[part]),
            dlogits if dlogits is None else dlogits[:count],
            *(count, vocabulary),
        )
        if is_trained:
            assert dlogits is not None and dtokens_MK is not None
            assert dweight_VK is not None and matrix_VK is not None
            dtokens_MK[part] = _matmul_in_parts(dlogits[:count], matrix_VK)
            dweight_VK += matmul(dlogits[:count].t(), scale_rows(codes, rows_M[part], wide))
    return nats.sum().float(), dtokens_MK, dweight_VK
