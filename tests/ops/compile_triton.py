"""Compile every Triton kernel for sm_90 without a GPU, in both dtypes: `python -m tests.ops.compile_triton`."""

from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from rcdist.ops import (
    block_triton,
    cross_entropy_triton,
    gated_triton,
    hadamard_runs_triton,
    hadamard_triton,
    norm_triton,
    norms_triton,
    product_triton,
    quantise_triton,
    scan_triton,
    two_bits_triton,
)
from rcdist.ops import triton_common as common

_INTEGERS = {
    "rows", "width", "half", "time", "chunk", "chunks", "M", "N", "K", "R", "C", "rows_class", "size", "inputs",
    "outputs", "num_rows", "columns_step", "rows_step", "num_sums",
}  # fmt: skip
_FLOATS = {"eps", "constant", "factor", "shrink", "b_scale"}
_FLOAT32 = {
    "scale", "inverse", "inverses", "dgain", "dgains", "da_gain", "before", "end", "decay", "after", "dgamma", "begin",
    "sums", "h0", "gamma", "columns", "logits", "weights", "nats",
}  # fmt: skip
EARLY: dict[str, Any] = {"EARLY": True}
_INT8 = {"codes", "ternary", "starts"}


def _type_of(name: str, dtype: str, overrides: dict[str, str]) -> str:
    if name in overrides:
        return overrides[name]
    if name in _INTEGERS:
        return "i32"
    if name in _FLOATS:
        return "fp32"
    if name in _INT8:
        return "*i8"
    return "*fp32" if name in _FLOAT32 else f"*{dtype}"


def compile_kernel(kernel: Any, dtype: str, constants: dict[str, Any], **overrides: str) -> None:
    """Compile one kernel with pointers of a dtype; print its name and size."""
    signature = {
        name: "constexpr" if name in constants else _type_of(name, dtype, overrides) for name in kernel.arg_names
    }
    source = ASTSource(kernel, signature, constants)
    binary = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
    print(f"sm_90 {kernel.fn.__module__}.{kernel.fn.__name__} {dtype}: {len(binary.asm['cubin'])} bytes of cubin")


def main() -> None:
    """Compile all."""
    scan: dict[str, Any] = {"HAS_F": True, "F_FACTOR": True, "C_FACTOR": True, "HAS_STARTS": True, "WRITE": True}
    hadamard = {"S": 3, "R": 4, "P": 32, "Q": 32, "STAGES": 2}
    expand = {"IS_CODES": True, "HAS_ROWS": True, "HAS_COLUMNS": True, "HAS_SCALE": False}
    contract = {"IS_CODES": False, "HAS_ROWS": False, "HAS_IN": True, "HAS_OUT": True, "HAS_SCALE": True, "ADD": True}
    chunks = {"HAS_STATE": True, "BACKWARDS": True, "CHUNKS": 8, "CHANNELS": 32}
    for dtype in ("fp32", "bf16"):
        compile_kernel(norm_triton._forward_kernel, dtype, {"HAS_DELTA": True, "BLOCK": 1024} | EARLY, gain=f"*{dtype}")
        compile_kernel(norm_triton._backward_kernel, dtype, {"HAS_DX": True, "BLOCK": 1024})
        norms = {"NUM": 3, "BLOCK": 1024}
        compile_kernel(norms_triton._forward_kernel, dtype, norms | {"HAS_DELTA": True} | EARLY)
        compile_kernel(norms_triton._backward_kernel, dtype, norms | {"HAS_DX": True})
        compile_kernel(common._column_sums_kernel, dtype, {"TILE": 64, "BLOCK": 32}, x="*fp32")
        compile_kernel(quantise_triton._sum_kernel, dtype, {"BLOCK": 4096}, sums="*fp32")
        compile_kernel(quantise_triton._round_kernel, dtype, {"SUMS": 1024, "BLOCK": 4096}, sums="*fp32", beta="*fp32")
        for is_glu in (True, False):
            constants = {"REPEAT": 0, "IS_GLU": is_glu, "A_FACTOR": True, "B_FACTOR": not is_glu, "BLOCK": 1024}
            compile_kernel(gated_triton._forward_kernel, dtype, constants | EARLY)
            if is_glu:
                compile_kernel(gated_triton._backward_kernel, dtype, constants | {"SUMS": True})
                constants |= {"REPEAT": 512, "A_FACTOR": False, "B_FACTOR": True}
                repeated = {"b": "*i8", "b_rows": "*fp32"}
                compile_kernel(gated_triton._forward_kernel, dtype, constants | EARLY, **repeated)
                compile_kernel(gated_triton._backward_kernel, dtype, constants | {"SUMS": True}, **repeated)
                compile_kernel(gated_triton._fold_kernel, dtype, {"REPEAT": 512, "TERMS": 3, "ROWS": 8})
        tile = {"CHANNELS": 64, "TILE": 8, "STAGES": 3, "EVEN": True}
        compile_kernel(scan_triton._forward_kernel, dtype, scan | tile | EARLY)
        compile_kernel(
            scan_triton._backward_kernel, dtype, scan | {"HAS_H0": True, "CHANNELS": 64, "TILE": 8, "STAGES": 2}
        )
        compile_kernel(scan_triton._chunks_kernel, dtype, chunks, state="*fp32")
        tiles = {"BM": 64, "BN": 64, "BK": 64}
        compile_kernel(product_triton.product_kernel, dtype, tiles, rows="*fp32")
        compile_kernel(product_triton._scale_rows_kernel, dtype, {"BLOCK": 4096}, rows="*fp32")
        block = {"RUN": 16, "BM": 128, "BR": 64, "BC": 64}
        compile_kernel(block_triton._forward_kernel, dtype, block, rows="*fp32", inverse="*i32")
        full = {"ADD": True, "FULL": dtype == "fp32"}
        compile_kernel(block_triton._backward_kernel, dtype, block | full, inverse="*i32")
        gains = {"TILE": 16, "BLOCK": 256}
        compile_kernel(product_triton._gain_gradient_kernel, dtype, gains, out="*fp32")
        kind = "*fp16" if dtype == "bf16" else "*fp32"
        types = {"signs": "*i16", "rows": "*fp32", "columns_in": "*fp32", "columns_out": "*fp32"}
        compile_kernel(hadamard_triton._expand_kernel, dtype, hadamard | expand, x="*i8", h_p=kind, h_q=kind, **types)
        matrices = {"h_p": f"*{dtype}", "h_q": f"*{dtype}"}
        compile_kernel(hadamard_triton._contract_kernel, dtype, hadamard | contract, **matrices, **types)
        runs = {"RUNS": 3, "S": 2, "R": 4, "P": 32, "Q": 32}
        kinds = {"x": "*i8", "h_p": kind, "h_q": kind, "scratch": kind}
        compile_kernel(hadamard_runs_triton.expand_kernel, dtype, runs | expand, **kinds, **types)
        compile_kernel(hadamard_runs_triton.contract_kernel, dtype, runs | contract, **matrices, **types)
        loss = {"IS_TRAINED": True, "BLOCK": 4096}
        compile_kernel(cross_entropy_triton._cross_entropy_kernel, dtype, loss, targets="*i64")
        row: dict[str, Any] = {"ON_GPU": 1, "BN": 8, "BW": 128} | EARLY
        three = {f"{name}{i}": kind for i in range(3) for name, kind in (("w", "*i32"), ("c", "*fp32"))}
        counts = dict.fromkeys(("n0", "n1", "n2", "step0", "step1", "step2", "tiles0", "tiles1", "words"), "i32")
        types = three | counts | {"codes": "*i32", "row": "*fp32"}
        compile_kernel(two_bits_triton._row_kernel, dtype, row, **types)
        compile_kernel(two_bits_triton._rows_kernel, dtype, tiles, rows="*fp32", weights="*u8")
        unpack = {"packed": "*u8", "quarter": "i32"}
        compile_kernel(two_bits_triton._unpack_kernel, dtype, {"BLOCK": 2048}, **unpack)


if __name__ == "__main__":
    main()
