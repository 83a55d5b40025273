"""What this machine has: versions, processor, compiler, GPUs, and what a training step takes."""

import os
import platform
import shutil
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from rcdist.doctor.finding import Finding

_STEPS = 5
README_TOKENS_PER_S = 6_600
"""Of a training step of `tiny` on two cores, the least of README's figures."""
_SLOW = 4.0


def find_versions() -> Iterator[Finding]:
    """Compare what is installed with what pyproject.toml asks for, extras apart."""
    yield Finding("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    wrong = []
    for text in metadata.requires("rcdist") or []:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing ({requirement.specifier or 'any'})")
            continue
        if not requirement.specifier.contains(Version(version).public, prereleases=True):
            wrong.append(f"{requirement.name} {version} is not {requirement.specifier}")
    if wrong:
        yield Finding("versions", ", ".join(wrong), "Install them: pip install -e .")
        return
    shown = ("torch", "ray", "deepspeed", "mlflow")
    yield Finding("versions", ", ".join(f"{name} {metadata.version(name)}" for name in shown))


def find_processor() -> Finding:
    """Say which instructions the kernels get."""
    import torch

    from rcdist.ops.backend import describe_backend

    return Finding("processor", f"{os.cpu_count()} cores, {describe_backend(torch.zeros(1))}")


def find_compiler() -> Finding:
    """Say whether the kernels for the CPU can be compiled, or are there."""
    from rcdist.ops import native

    if native.is_available():
        return Finding("compiler", shutil.which("g++") or "none, the kernels are compiled already")
    return Finding("compiler", "no kernels: g++ is missing or fails", "Install g++: steps take several times as long")


def find_devices() -> Finding:
    """Name the GPUs, and whether Triton can compile for them."""
    import torch

    from rcdist.ops.backend import has_triton

    if not torch.cuda.is_available():
        if Path("/dev/nvidia0").exists():
            return Finding(
                "devices", f"a GPU, and torch {torch.__version__} without it", "Install a CUDA build of torch"
            )
        return Finding("devices", "no GPU")
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if not has_triton():
        return Finding("devices", ", ".join(names), "Install triton: without it steps are several times slower")
    return Finding("devices", ", ".join(names))


def find_step() -> Finding:
    """Time training steps of `tiny` in this process, without Ray and DeepSpeed."""
    import torch

    from rcdist.benchmark.steps import build_ours, loss_of, random_tokens
    from rcdist.config import ModelConfig, ReservoirConfig
    from rcdist.ops.host import prepare_host

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    prepare_host()
    shape = ModelConfig()
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = build_ours(shape, ReservoirConfig(), device, dtype)
    tokens = random_tokens(shape, 8, 256, device)

    def step() -> float:
        loss = loss_of("ours", model, tokens)
        loss.backward()
        return float(loss.detach())

    step()
    began = time.perf_counter()
    for _ in range(_STEPS):
        step()
    rate = _STEPS * tokens[:, 1:].numel() / (time.perf_counter() - began)
    found = (
        f"{rate:,.0f} tokens/s forward and backward of tiny (README: {README_TOKENS_PER_S:,} and more a run, two cores)"
    )
    if rate * _SLOW < README_TOKENS_PER_S:
        return Finding("step", found, "See the compiler above, and what else runs on this machine")
    return Finding("step", found)
