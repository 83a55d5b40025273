"""Repeat work on a GPU as a CUDA graph: the host launches it at once, not operation by operation."""

import gc
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from rcdist.storage import say


class Replay:
    """Run work that reads and writes tensors which stay where they are; from its second run on, on a GPU, as a graph.

    The first run is the ordinary one: kernels are compiled and libraries prepare themselves in it. Memory for what
    graphs compute on the way is reserved once, for the largest of them. Where a capture fails, work goes on without.

    Args:
        device: where the work is done; only on a GPU is anything captured.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_capturing = device.type == "cuda"
        self._pool = torch.cuda.graph_pool_handle() if self._is_capturing else None
        self._seen: set[Hashable] = set()
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self._inputs: dict[tuple[torch.Size, ...], tuple[Tensor, ...]] = {}

    @property
    def num_graphs(self) -> int:
        """Return how many pieces of work are graphs by now."""
        return len(self._graphs)

    def has(self, key: Hashable) -> bool:
        """Say whether a piece of work is a graph by now."""
        return key in self._graphs

    def run(self, key: Hashable, work: Callable[[], object]) -> None:
        """Do a piece of work.

        Args:
            key: of the work, and of the shapes it is done on.
            work: does the same operations on the same tensors each time, and reads no value on the host.
        """
        graph = self._graphs.get(key)
        if graph is None and self._is_capturing and key in self._seen:
            graph = self._capture(key, work)
        self._seen.add(key)
        if graph is None:
            work()
        else:
            graph.replay()

    def run_on(self, name: str, work: Callable[..., object], tensors: Sequence[Tensor]) -> None:
        """Do a piece of work on the values of some tensors, which are copied to where its graph reads them.

        Args:
            name: of the work; together with the shapes it is the key.
            work: takes as many tensors.
            tensors: on the device.
        """
        shapes = tuple(tensor.shape for tensor in tensors)
        places = self._inputs.get(shapes)
        if places is None:
            places = self._inputs[shapes] = tuple(tensor.clone() for tensor in tensors)
        else:
            for place, tensor in zip(places, tensors, strict=True):
                place.copy_(tensor)
        self.run((name, shapes), lambda: work(*places))

    def forget(self) -> None:
        """Drop all graphs: tensors that they know have moved."""
        self._graphs.clear()
        self._seen.clear()

    def _capture(self, key: Hashable, work: Callable[[], object]) -> torch.cuda.CUDAGraph | None:
        try:
            graph = self._graphs[key] = self._record(work)
            return graph
        except RuntimeError as error:  # out of memory, or an operation that cannot be captured
            # What ends the capture only says that there was an error before.
            first = error.__context__ or error
            reason = (str(first).strip().splitlines() or [type(first).__name__])[0]
        self._is_capturing = False
        self._graphs.clear()
        # A capture that fails leaves the random generator in it; one that succeeds takes it out.
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            torch.empty(1, device="cuda").zero_()
        gc.collect()  # the memory of graphs is not for others, until they are gone
        torch.cuda.empty_cache()
        say(f"CUDA graphs are off, steps take longer: {reason}")
        return None

    def _record(self, work: Callable[[], object]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        # Other threads, as those that write checkpoints or watch NCCL, may use the device meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            work()
        return graph
