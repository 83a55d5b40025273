"""Count the bytes that a block's operations read and write: the plain port's, one by one, and ours, fused."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rcdist.benchmark.reference_model import ReferenceBlock
from rcdist.config import Architecture, ModelConfig, ReservoirConfig
from rcdist.model.bitlinear import ProjectionBuilder
from rcdist.model.init import InitKey
from rcdist.model.lm import Block
from rcdist.model.reservoir import build_bank
from rcdist.ops import native
from rcdist.ops.weights import WeightsQuantisedOnce


class TrafficCounter(TorchDispatchMode):
    """Add up, per operation, the bytes of the tensors it reads and writes while entered; views move nothing.

    Caches are not considered: an operation counts each of its tensors once, in and out.

    Attributes:
        moved: bytes by the operation's name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.moved: Counter[str] = Counter()

    def __enter__(self) -> "TrafficCounter":
        native.observers.append(self._count_kernel)
        super().__enter__()
        return self

    def __exit__(self, *details: Any) -> None:
        super().__exit__(*details)
        native.observers.remove(self._count_kernel)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation of torch and count it."""
        found = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not func.is_view and not name.startswith(("empty", "new_empty", "detach")):
            read = [] if name.startswith(("zeros", "ones", "full", "new_zeros")) else tree_leaves((args, kwargs))
            self.moved[name.rstrip("_")] += _bytes(read) + _bytes(tree_leaves(found))
        return found

    def _count_kernel(self, kernel: str, arguments: Iterable[Any]) -> None:
        self.moved[kernel] += _bytes(arguments)


def _bytes(values: Iterable[Any]) -> int:
    """Add up distinct tensors; one of stride 0 holds fewer elements than its shape says."""
    tensors = {id(v): v for v in values if isinstance(v, Tensor)}
    return sum(min(t.numel() * t.element_size(), t.untyped_storage().nbytes()) for t in tensors.values())


def measure_traffic(model: ModelConfig, batch: int, length: int, plan: ReservoirConfig) -> dict[str, Any]:
    """Count the bytes per token of one block, forward and backward, in bfloat16 on the CPU.

    Returns:
        For the port, our baseline and `plan`: total bytes per token, by operation, and the share of the port's.
    """
    found: dict[str, Any] = {}
    for name in ("port", "T", plan.plan):
        moved = _count(name, model, batch, length, ReservoirConfig(plan="T") if name == "T" else plan)
        total = sum(moved.values())
        tokens = batch * length
        found[name] = {"bytes_per_token": total / tokens} | {
            f"  {operation}": count / tokens for operation, count in moved.most_common() if count > total / 200
        }
        found[name]["over_port"] = found[name]["bytes_per_token"] / found["port"]["bytes_per_token"]
    return found


def _count(name: str, model: ModelConfig, batch: int, length: int, plan: ReservoirConfig) -> Counter[str]:
    dtype, width = torch.bfloat16, model.width
    block: nn.Module
    if name == "port":
        block = ReferenceBlock(model).to(dtype)
    else:
        architecture = Architecture(model, plan)
        block = Block(ProjectionBuilder(architecture, build_bank(architecture)), 0, InitKey(0)).to(dtype)
    x = torch.randn(batch, length, width, dtype=dtype, requires_grad=True)
    delta = torch.randn_like(x).requires_grad_()
    gamma, dx = torch.rand(width), torch.randn(batch, length, width, dtype=dtype)

    def run() -> None:
        if name == "port":
            block(x, gamma, None).backward(dx)
        else:
            # Our block leaves its last addition to the next norm, and does that of the block before it.
            total, added, _ = block(x, delta, gamma, None, None)
            torch.autograd.backward([total, added], [dx, dx])

    with WeightsQuantisedOnce():
        run()  # gradients exist; weights are rounded, once per optimizer step
        with TrafficCounter() as counter:
            run()
    return counter.moved
