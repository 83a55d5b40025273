"""What the cluster's nodes see, and whether they reach each other; a Ray session must be open."""

import secrets
import socket
import time
from collections.abc import Iterator
from importlib import metadata
from typing import Any

from rcdist.bucket import is_bucket
from rcdist.config import JobConfig
from rcdist.doctor.finding import Finding
from rcdist.doctor.stores import place_of, try_to_write

_MOST_SKEW_S = 2.0
_COLLECTIVE_S = 60.0


def find_ray() -> Finding:
    """Say what the cluster has."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    resources = ray.cluster_resources()
    parts = f"{resources.get('CPU', 0):g} CPUs, {resources.get('GPU', 0):g} GPUs"
    return Finding("ray", f"{len(nodes)} nodes, {parts}, Ray {ray.__version__}")


def find_nodes(config: JobConfig) -> Iterator[Finding]:
    """Have every node write into storage_path, tell its time and its versions."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = ray.remote(num_cpus=0)(look_from_node)
    name = f".doctor-{secrets.token_hex(4)}"
    nodes = [node for node in ray.nodes() if node["Alive"]]
    for node in nodes:
        options = {"scheduling_strategy": NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)}
        before = time.time()
        seen = ray.get(look.options(**options).remote(place_of(config), name))
        where = f"node {node['NodeManagerAddress']} ({seen['host']})"
        yield judge_node(where, seen, before, time.time(), place_of(config))


def look_from_node(folder: str, name: str) -> dict[str, Any]:
    """Return what a node sees: whether it can write a file, its clock, its versions."""
    problem = None
    try:
        try_to_write(folder, name)
    except OSError as error:
        problem = " ".join(str(error.strerror or error).split())
    versions = {name: metadata.version(name) for name in ("torch", "ray", "deepspeed")}
    return {"host": socket.gethostname(), "time": time.time(), "storage": problem, "versions": versions}


def judge_node(where: str, seen: dict[str, Any], before: float, after: float, storage: str) -> Finding:
    """Compare what a node sees with what this process does.

    Args:
        where: the node.
        seen: of `look_from_node`.
        before: this clock when it was asked.
        after: this clock when it had answered.
        storage: folder or bucket that it wrote into.
    """
    if seen["storage"] is not None:
        remedy = "Mount the same folder on every node"
        if is_bucket(storage):
            remedy = "Give every node a role or credentials that may write the bucket, before `ray start`"
        return Finding(where, f"cannot write {storage} ({seen['storage']})", remedy)
    skew = max(before - seen["time"], seen["time"] - after, 0.0)
    if skew > _MOST_SKEW_S:
        return Finding(where, f"its clock is {skew:.1f} s off", "Let chrony or ntpd run on every node")
    for name, version in seen["versions"].items():
        if version != metadata.version(name):
            rule = f"{name} {version}, here {metadata.version(name)}"
            return Finding(where, rule, "Install the same on every node")
    return Finding(where, "writes the storage, has the time and the versions")


def find_collectives() -> Finding:
    """Sum over two workers, by NCCL if there are two GPUs, else by gloo."""
    import ray

    backend = "nccl" if ray.cluster_resources().get("GPU", 0) >= 2 else "gloo"
    options = {"num_gpus": 1} if backend == "nccl" else {"num_cpus": 0}
    worker = ray.remote(**options, scheduling_strategy="SPREAD")(_Rank)
    ranks = [worker.remote() for _ in range(2)]
    try:
        address = ray.get(ranks[0].address.remote(), timeout=_COLLECTIVE_S)
        asked = [rank.add.remote(i, address, backend) for i, rank in enumerate(ranks)]
        sums = ray.get(asked, timeout=_COLLECTIVE_S)
    except Exception as error:
        remedy = "Look at NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME, and at firewalls between nodes"
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        return Finding("collectives", f"{backend} fails between two workers ({reason[:200]})", remedy)
    finally:
        for rank in ranks:
            ray.kill(rank)
    if sums != [3.0, 3.0]:
        return Finding("collectives", f"{backend} adds 1 and 2 up to {sums}", "Look at the network between nodes")
    return Finding("collectives", f"{backend} adds up over two workers")


class _Rank:
    """Take part in a sum over two processes."""

    def address(self) -> str:
        """Return an address that the other can reach."""
        import ray

        from rcdist.ports import free_port

        return f"tcp://{ray.util.get_node_ip_address()}:{free_port()}"

    def add(self, rank: int, address: str, backend: str) -> float:
        """Return 1 + 2."""
        import torch
        from torch import distributed

        distributed.init_process_group(backend, init_method=address, rank=rank, world_size=2)
        value = torch.tensor([rank + 1.0], device="cuda" if backend == "nccl" else "cpu")
        distributed.all_reduce(value)
        distributed.destroy_process_group()
        return float(value)
