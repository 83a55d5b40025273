"""What a worker shares with the driver and other nodes where the storage is a bucket: small files, and the corpora."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import ray
import torch.distributed as dist

from rcdist.checkpoint.mirror import WORKER_FILES
from rcdist.config import JobConfig
from rcdist.data.remote import pull_data
from rcdist.train.collectives import gather_objects
from rcdist.train.control import STOP_ERROR, STOP_REQUEST, mirror_of
from rcdist.train.payload import Payload


@contextlib.contextmanager
def shared_files(config: JobConfig) -> Iterator[None]:
    """Bring what was written by other nodes, and send what this one writes, while open; a folder is seen by all."""
    config.run_dir.mkdir(parents=True, exist_ok=True)
    mirror = mirror_of(config)
    try:
        with contextlib.ExitStack() as stack:
            if config.bucket is not None and is_first_of_node():
                mirror.try_pull((STOP_ERROR, STOP_REQUEST))  # those of an earlier job go
            if dist.get_rank() == 0:
                mirror.try_pull(WORKER_FILES, if_newer=True)
                stack.enter_context(mirror.pushing(WORKER_FILES))
                stack.enter_context(mirror.pulling([STOP_REQUEST]))
            yield
    finally:
        mirror.push([STOP_ERROR])


def with_data_here(payload: Payload) -> Payload:
    """Return the payload with the corpora's places on this node; a collective call.

    Raises:
        OSError: the bucket does not answer, or the disk is full.
    """
    config = payload.config
    if config.bucket is None:
        return payload
    failure = None
    if is_first_of_node():
        try:
            pull_data(config, payload.data)
        except OSError as error:
            failure = f"{error}"
    found = next(filter(None, gather_objects(failure)), None)
    if found is not None:
        raise OSError(f"the corpora cannot be brought: {found}")
    return replace(payload, data=pull_data(config, payload.data))


def is_first_of_node() -> bool:
    """Say whether this worker does what is done once per node of Ray's; a collective call.

    Ray Train's local ranks go by IP addresses, which several nodes on one machine share.
    """
    node = ray.get_runtime_context().get_node_id()
    return gather_objects(node).index(node) == dist.get_rank()
