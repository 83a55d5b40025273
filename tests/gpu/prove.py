"""Prove the kernels on a GPU and measure them: `python -m tests.gpu.prove OUT_FOLDER`."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"

import torch

from rcdist.config import ModelConfig, ReservoirConfig
from rcdist.model.reservoir import build_bank
from rcdist.ops import product_triton
from rcdist.ops.backend import forced
from rcdist.ops.gated import glu_quantise
from rcdist.ops.norm import add_norm_quantise
from rcdist.ops.scan import gated_scan
from tests.ops import cases

GOLDEN = "e063eaf92bb62eb6e7fd34acf4bf98e5ccb922be823838b25f96143137fee492"


def golden_digest() -> str:
    """Return the digest of a bank with every topology; the same on every platform."""
    topology = {"c": "block", "G": "hadamard", "D": "hadamard", "r": "ring", "f": "dense", "U": "block"}
    config = ReservoirConfig(plan="cfGUD@a+r", topology=topology, block_size=3)
    return build_bank(ModelConfig(num_layers=4, width=24, glu_width=48), config).digest()


def check_everything() -> dict[str, str]:
    """Compare every operation with the reference on the device; return what failed."""
    failed: dict[str, str] = {}

    def check(name: str, run: Callable[[], None]) -> None:
        torch.manual_seed(42)
        try:
            run()
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {error}"[:300]

    torch.set_default_device("cuda")
    for dtype in (torch.float32, torch.bfloat16):
        for width in (5, 131, 1024, 2816):
            check(f"norm {dtype} {width}", lambda d=dtype, w=width: cases.check_norm("triton", d, w, True))
            for kind in ("glu", "readout"):
                check(f"{kind} {dtype} {width}", lambda d=dtype, w=width, k=kind: cases.check_gated("triton", d, w, k))
        for shape in ((2, 37, 40), (1, 3000, 70), (64, 129, 2048)):
            for on in (True, False):
                check(
                    f"scan {dtype} {shape} {on}",
                    lambda d=dtype, s=shape, o=on: cases.check_scan("triton", d, s, constant=False, state=o, starts=o),
                )
        for letter, topology in (("c", "dense"), ("D", "dense"), ("G", "hadamard"), ("D", "hadamard"), ("G", "block")):
            check(
                f"project {dtype} {letter} {topology}",
                lambda d=dtype, le=letter, t=topology: cases.check_project(
                    "triton", d, le, t, gain=True, width=256, glu_width=1024
                ),
            )
        for rows, vocabulary in ((37, 131), (300, 32000)):
            check(
                f"loss {dtype} {rows} {vocabulary}",
                lambda d=dtype, r=rows, v=vocabulary: cases.check_loss("triton", d, r, v, weighted=True),
            )
    torch.set_default_device("cpu")
    return failed


def seconds_of(run: Callable[[], Any], repeats: int = 20) -> float:
    """Return the median seconds of a run on the device, by events."""
    for _ in range(3):
        run()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 1000)
    return sorted(times)[repeats // 2]


def measure_kernels(tokens: int = 32768, width: int = 2048) -> dict[str, Any]:
    """Measure ceilings and kernels, each as a share of its ceiling."""
    bf16, device = torch.bfloat16, torch.device("cuda")
    source, target = torch.empty(2, 2**30, dtype=torch.uint8, device=device)
    copy_rate = 2 * source.numel() / seconds_of(lambda: target.copy_(source))
    found: dict[str, Any] = {"copy_bytes_per_s": copy_rate}

    def bandwidth(name: str, run: Callable[[], Any], moved: int) -> None:
        seconds = seconds_of(run)
        found[name] = {"s": seconds, "bytes": moved, "share_of_copy": moved / seconds / copy_rate}

    size = tokens * width
    x, delta = (torch.randn(tokens, width, device=device, dtype=bf16) for _ in range(2))
    gain = torch.ones(width, device=device, dtype=bf16)
    with torch.no_grad(), forced("triton"):
        bandwidth("add norm quantise", lambda: add_norm_quantise(x, delta, gain, 1e-6), size * 7)
        bandwidth("norm quantise", lambda: add_norm_quantise(x, None, gain, 1e-6), size * 3)
        bandwidth("glu", lambda: glu_quantise(x, delta, gain, 1e-6), size * 5)
        gamma = torch.rand(width, device=device)
        for batch in (64, 16, 4, 1):
            shape = (batch, tokens // batch, width)
            pf, pc = x.view(shape), delta.view(shape)
            bandwidth(f"scan B {batch}", lambda f=pf, c=pc: gated_scan(f, c, gamma), size * 6)
    codes = torch.randint(-127, 128, (tokens, width), device=device, dtype=torch.int8)
    ternary = torch.randint(-1, 2, (width, width), device=device, dtype=torch.int8)
    rows, columns = torch.rand(tokens, device=device), torch.rand(width, device=device)
    weight, flops = torch.randn(width, width, device=device, dtype=bf16), 2 * tokens * width * width
    for name, run in (
        ("bf16 product", lambda: x @ weight.t()),
        ("int8 product, library", lambda: torch._int_mm(codes, ternary.t())),
        ("int8 product with scales", lambda: product_triton.dense_product(x, codes, rows, ternary, columns)),
        ("scale rows", lambda: product_triton.scale_rows(codes, rows, bf16)),
    ):
        seconds = seconds_of(run)
        found[name] = {"s": seconds, "flops_per_s": flops / seconds}
    bank = build_bank(ModelConfig(num_layers=1, width=width), ReservoirConfig(plan="c@a", topology="hadamard"))
    matrix = bank.to(device).linear_map("c@a")
    run = lambda: product_triton.hadamard_expand(codes, rows, columns, matrix, bf16)  # noqa: E731
    found["hadamard"] = {"s": seconds_of(run), "over bf16 product": seconds_of(run) / found["bf16 product"]["s"]}
    return found


def main(folder: Path) -> None:
    """Write what was proved and measured."""
    result: dict[str, Any] = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    result["golden"] = golden_digest() == GOLDEN
    result["failed"] = check_everything()
    print(json.dumps(result, indent=1), flush=True)
    result["kernels"] = measure_kernels()
    print(json.dumps(result["kernels"], indent=1), flush=True)
    (folder / "prove.json").write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
