"""What a cluster has, or can grow to, and how many trials that is room for."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rcdist.cluster import Workers, is_local, planned_workers
from rcdist.config import JobConfig

DRIVER_BYTES = 500_000_000
"""Memory that a trial's driver reserves where its workers are processes of their own. It takes no CPU: on a full
cluster it would wait for one that its own workers are to get, or keep them from it."""


@dataclass(frozen=True)
class Capacity:
    """Hold the most that a cluster may have.

    Attributes:
        cpus, gpus, memory: in all; memory in bytes.
        node_cpus, node_gpus: of the largest node.
    """

    cpus: float
    gpus: float
    memory: float
    node_cpus: float
    node_gpus: float


@dataclass(frozen=True)
class Needs:
    """Hold what one trial takes.

    Attributes:
        cpus, gpus: in all.
        worker_cpus: of one worker, which must fit on one node.
        is_here: it trains in the process of its driver.
    """

    cpus: float
    gpus: float
    worker_cpus: float
    is_here: bool

    @property
    def bundle(self) -> dict[str, float]:
        """Return what Tune reserves for the trial's own process."""
        if not self.is_here:
            return {"memory": DRIVER_BYTES}
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})


def read_capacity(config: JobConfig) -> Capacity:
    """Return what the connected cluster has, or what its autoscaler may make of it."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    found, largest = [ray.cluster_resources()], list(nodes)
    if not is_local(config):
        from ray._private.state import state

        most, cluster = state.get_max_resources_from_cluster_config(), state.get_cluster_config()
        found += [most] if most else []
        largest += [dict(group.resources) for group in cluster.node_group_configs] if cluster else []
    return Capacity(
        cpus=_most(found, "CPU"),
        gpus=_most(found, "GPU"),
        memory=_most(found, "memory"),
        node_cpus=_most(largest, "CPU"),
        node_gpus=_most(largest, "GPU"),
    )


def _most(resources: Iterable[Mapping[str, Any]], name: str) -> float:
    return max((float(row.get(name, 0.0)) for row in resources), default=0.0)


def find_needs(config: JobConfig, capacity: Capacity, gpus_per_trial: float) -> Needs:
    """Return what a trial takes: with one worker it trains in its driver's process, which is used again."""
    workers = _workers(config, capacity)
    count = workers.min_workers or workers.num_workers
    if workers.num_workers == 1:
        return Needs(workers.cpus_per_worker, gpus_per_trial * workers.use_gpu, workers.cpus_per_worker, True)
    return Needs(count * workers.cpus_per_worker, float(count * workers.use_gpu), workers.cpus_per_worker, False)


def _workers(config: JobConfig, capacity: Capacity) -> Workers:
    """Return the workers of a trial; where the settings leave it open a trial of a search has one, not the cluster."""
    use_gpu = capacity.gpus > 0 if config.cluster.use_gpu is None else config.cluster.use_gpu
    cluster = config.cluster.model_copy(update={"use_gpu": use_gpu, "num_workers": config.cluster.num_workers or 1})
    return planned_workers(config.model_copy(update={"cluster": cluster}))


def count_room(needs: Needs, capacity: Capacity) -> int:
    """Return how many such trials the cluster can hold at one time; 0: not one."""
    if needs.worker_cpus > capacity.node_cpus or (needs.gpus and capacity.node_gpus < min(needs.gpus, 1.0)):
        return 0
    shares = [math.floor(capacity.cpus / needs.cpus + 1e-9)]
    if needs.gpus:
        # Fractions of a GPU are of one and the same GPU.
        per_gpu = math.floor(1 / needs.gpus + 1e-9)
        shares.append(math.floor(capacity.gpus) * per_gpu if needs.gpus < 1 else math.floor(capacity.gpus / needs.gpus))
    if not needs.is_here:
        shares.append(max(math.floor(capacity.memory / DRIVER_BYTES), 1))
    return min(shares)


def describe_lack(needs: Needs, capacity: Capacity) -> str:
    """Say in numbers why not one such trial fits."""
    if needs.worker_cpus > capacity.node_cpus:
        return f"a worker needs {needs.worker_cpus:g} CPUs, the largest node has {capacity.node_cpus:g}"
    if needs.gpus > capacity.gpus:
        return f"a trial needs {needs.gpus:g} GPUs, the cluster has or can grow to {capacity.gpus:g}"
    return f"a trial needs {needs.cpus:g} CPUs, the cluster has or can grow to {capacity.cpus:g}"
