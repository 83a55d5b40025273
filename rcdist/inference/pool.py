"""Likelihoods of many texts, measured by several Ray workers, each with a copy of the model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rcdist.inference.likelihood import Likelihood, Request, measure_likelihoods
from rcdist.inference.load import choose_device, load_model
from rcdist.ops.host import prepare_host

_TEXTS_AT_ONCE = 256


class _Worker:
    """Hold a model and measure what it is sent."""

    def __init__(self, folder: str, device: Literal["cpu", "cuda"], threads: int) -> None:
        if device == "cpu":
            prepare_host(threads)
        self._loaded = load_model(Path(folder), choose_device(device))

    def measure(self, requests: list[Request]) -> list[Likelihood]:
        """Return the likelihoods."""
        return measure_likelihoods(self._loaded, requests)


class LikelihoodPool:
    """Measure texts on Ray's workers; a session must be open. Texts of similar length go to one worker together.

    Args:
        folder: a run, a checkpoint or a packed folder, which every node sees.
        num_workers: each has a GPU, or a share of this machine's cores.
        device: of each.
        threads: of each on a CPU.
    """

    def __init__(self, folder: Path, num_workers: int, device: Literal["cpu", "cuda"], threads: int) -> None:
        import ray

        options = {"num_gpus": 1} if device == "cuda" else {"num_cpus": threads}
        worker = ray.remote(_Worker).options(**options)
        self._workers = [worker.remote(str(folder.resolve()), device, threads) for _ in range(num_workers)]

    def measure(self, requests: Sequence[Request]) -> list[Likelihood]:
        """Return how likely each continuation is after its context; see `measure_likelihoods`."""
        from ray.util import ActorPool

        order = sorted(range(len(requests)), key=lambda i: len(requests[i][0]) + len(requests[i][1]), reverse=True)
        parts = [order[first : first + _TEXTS_AT_ONCE] for first in range(0, len(order), _TEXTS_AT_ONCE)]
        pool = ActorPool(self._workers)
        found: list[Likelihood | None] = [None] * len(requests)
        sent = [[requests[i] for i in part] for part in parts]
        for part, measured in zip(parts, pool.map(lambda worker, each: worker.measure.remote(each), sent), strict=True):
            for i, likelihood in zip(part, measured, strict=True):
                found[i] = likelihood
        return [likelihood for likelihood in found if likelihood is not None]
