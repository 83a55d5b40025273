"""How many trials fit, in numbers."""

from typing import Any

import pytest

from rcdist.config import JobConfig
from rcdist.sweep.capacity import DRIVER_BYTES, Capacity, count_room, describe_lack, find_needs

LAPTOP = Capacity(cpus=2, gpus=0, memory=16e9, node_cpus=2, node_gpus=0)
CLUSTER = Capacity(cpus=64, gpus=8, memory=256e9, node_cpus=16, node_gpus=2)


def room(capacity: Capacity, share: float = 1.0, **cluster: Any) -> int:
    needs = find_needs(JobConfig(cluster=cluster), capacity, share)
    return count_room(needs, capacity)


def test_a_worker_of_its_own_leaves_all_cpus_to_the_workers() -> None:
    needs = find_needs(JobConfig(cluster={"num_workers": 2}), LAPTOP, 1.0)
    assert needs.bundle == {"memory": DRIVER_BYTES}
    assert count_room(needs, LAPTOP) == 1


def test_one_worker_trains_in_the_process_of_its_driver() -> None:
    needs = find_needs(JobConfig(cluster={"num_workers": 1}), LAPTOP, 1.0)
    assert needs.bundle == {"CPU": 1.0}
    assert needs.is_here
    assert find_needs(JobConfig(), CLUSTER, 0.5).bundle == {"CPU": 1.0, "GPU": 0.5}


@pytest.mark.parametrize(
    ("capacity", "share", "cluster", "expected"),
    [
        (LAPTOP, 1.0, {"num_workers": 1}, 2),
        (LAPTOP, 1.0, {"num_workers": 1, "cpus_per_worker": 2}, 1),
        (LAPTOP, 1.0, {"num_workers": 3}, 0),
        (LAPTOP, 1.0, {"num_workers": [2, 8]}, 1),
        (LAPTOP, 1.0, {"num_workers": 1, "use_gpu": True}, 0),
        (LAPTOP, 1.0, {"num_workers": 64, "use_gpu": True}, 0),
        (CLUSTER, 1.0, {"num_workers": 1}, 8),
        (CLUSTER, 0.25, {"num_workers": 1}, 32),
        (CLUSTER, 0.3, {"num_workers": 1}, 24),
        (CLUSTER, 1.0, {"num_workers": 2}, 4),
        (CLUSTER, 1.0, {"num_workers": 2, "use_gpu": False}, 32),
        (CLUSTER, 1.0, {"num_workers": 1, "cpus_per_worker": 32, "use_gpu": False}, 0),
    ],
)
def test_room(capacity: Capacity, share: float, cluster: dict[str, Any], expected: int) -> None:
    assert room(capacity, share, **cluster) == expected


def test_drivers_are_bounded_by_memory() -> None:
    small = Capacity(cpus=64, gpus=0, memory=2 * DRIVER_BYTES, node_cpus=64, node_gpus=0)
    assert room(small, num_workers=2) == 2


@pytest.mark.parametrize(
    ("cluster", "text"),
    [
        ({"num_workers": 64, "use_gpu": True}, "a trial needs 64 GPUs, the cluster has or can grow to 0"),
        ({"num_workers": 3}, "a trial needs 3 CPUs, the cluster has or can grow to 2"),
        ({"num_workers": 1, "cpus_per_worker": 8}, "a worker needs 8 CPUs, the largest node has 2"),
    ],
)
def test_lack_is_said_in_numbers(cluster: dict[str, Any], text: str) -> None:
    assert describe_lack(find_needs(JobConfig(cluster=cluster), LAPTOP, 1.0), LAPTOP) == text
