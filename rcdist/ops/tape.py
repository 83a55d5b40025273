"""Repeat work on a CPU without Python's overhead: compiled kernels and operations of torch are run from a tape."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rcdist.ops import native

_MAKE_ONLY = {"aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty", "aten::new_empty_strided"}
_READ_ON_HOST = {"aten::_local_scalar_dense", "aten::equal", "aten::is_nonzero", "aten::nonzero"}


class Tape:
    """Record the work of one call, and do it again on the same tensors: what a CUDA graph is on a GPU.

    Work made of small pieces spends most of its time in Python between them. On the tape are the calls of compiled
    kernels, with their addresses, and those operations of torch that compute something which changes from run to run;
    everything else is kept as it was. So every tensor stays where it is, and the work must read no value on the host.

    Args:
        work: is called once, which computes as ever.
        changing: every tensor that is written to between runs, or that the work itself writes to in place; what is
            computed from others alone is taken for constant.

    Attributes:
        is_complete: all of the work is on the tape; else `run` calls it again.
    """

    def __init__(self, work: Callable[[], object], changing: Sequence[Tensor]) -> None:
        self._work = work
        self._steps: list[Callable[[], object]] = []
        self._kept: list[Any] = [changing]  # whatever has an address must stay alive
        self._changing = {_address(tensor) for tensor in changing}
        self._constant: set[int] = set()
        self.is_complete = True
        with torch.no_grad(), native.recorded(self._add_kernel), _Recorder(self):
            work()

    def run(self) -> None:
        """Do the work again."""
        with torch.no_grad():
            if not self.is_complete:
                self._work()
                return
            for step in self._steps:
                step()

    @property
    def num_steps(self) -> int:
        """Return how many calls a run is."""
        return len(self._steps)

    def _add_kernel(self, call: Callable[[], object], arguments: tuple[Any, ...]) -> None:
        tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
        self._kept.append(tensors)
        self._steps.append(call)
        # Which of them it writes is not known: if one changes, all may.
        if any(_address(tensor) in self._changing for tensor in tensors):
            self._changing |= {_address(tensor) for tensor in tensors}

    def add_operation(self, function: Any, inputs: Any, keywords: dict[str, Any], result: Any) -> None:
        """Put an operation of torch on the tape, if its result changes from run to run."""
        schema = function._schema
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self._kept.append(outputs)
        if schema.name in _READ_ON_HOST:
            self.is_complete = False
        aliases = [returned.alias_info for returned in schema.returns]
        if schema.name in _MAKE_ONLY or any(alias is not None and not alias.is_write for alias in aliases):
            return
        sources = [leaf for leaf in tree_leaves((inputs, keywords)) if isinstance(leaf, Tensor)]
        is_in_place = any(alias is not None and alias.is_write for alias in aliases)
        if not any(_address(tensor) in self._changing for tensor in sources):
            if is_in_place and any(_address(tensor) in self._constant for tensor in outputs):
                self.is_complete = False
            self._constant |= {_address(tensor) for tensor in sources}
            if not is_in_place:
                return
        self._changing |= {_address(tensor) for tensor in outputs}
        if is_in_place:
            if any(_address(tensor) in self._constant for tensor in outputs):
                self.is_complete = False  # what was computed from it before is not constant after all
            self._steps.append(partial(function, *inputs, **keywords))
        else:
            self._steps.append(_again_into(outputs, function, inputs, keywords))


class _Recorder(TorchDispatchMode):
    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self._tape = tape

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here: else torch would import its compiler, 140 MB of memory."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._tape.add_operation(func, args, kwargs or {}, result)
        return result


def _again_into(outputs: list[Tensor], function: Any, inputs: Any, keywords: dict[str, Any]) -> Callable[[], object]:
    """Return what computes an operation into where its results lie: by its variant for that, if it has one."""
    packet, overload = function._overloadpacket, function._overloadname
    for name in ("out", f"{overload}_out"):
        if len(outputs) == 1 and name in packet.overloads():
            again = partial(getattr(packet, name), *inputs, **keywords, out=outputs[0])
            try:
                with torch.utils._python_dispatch._disable_current_modes():
                    again()
            except (RuntimeError, TypeError, ValueError):  # takes other arguments
                continue
            return again
    return partial(_compute_into, outputs, function, inputs, keywords)


def _compute_into(outputs: list[Tensor], function: Any, inputs: Any, keywords: dict[str, Any]) -> None:
    again = [leaf for leaf in tree_leaves(function(*inputs, **keywords)) if isinstance(leaf, Tensor)]
    for place, value in zip(outputs, again, strict=True):
        place.copy_(value)


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
