"""A run's folder as the driver has it: the storage itself, or its working copy of a bucket; one owner at a time."""

import contextlib
from collections.abc import Iterator

from rcdist.bucket_lease import BucketLease
from rcdist.checkpoint.find import sweep_unfinished
from rcdist.checkpoint.mirror import DRIVER_FILES, WORKER_FILES
from rcdist.checkpoint.remote import RemoteCheckpoints
from rcdist.config import JobConfig
from rcdist.lease import Lease
from rcdist.preflight import refusing_storage
from rcdist.train.control import mirror_of


@contextlib.contextmanager
def held_run(config: JobConfig) -> Iterator[Lease | BucketLease]:
    """Hold a run, its folder being what the storage has of it; what the driver writes goes to the bucket while open.

    Raises:
        HeldError: another job holds it.
        ConfigError: the storage cannot be written.
        CheckpointError: a bucket has checkpoints, and all are damaged.
    """
    with contextlib.ExitStack() as stack:
        with refusing_storage(config):
            if config.bucket is None:
                lease: Lease | BucketLease = stack.enter_context(Lease(config.run_dir, config.name))
                sweep_unfinished(config.run_dir)
            else:
                config.run_dir.mkdir(parents=True, exist_ok=True)
                lease = stack.enter_context(BucketLease(config.bucket, config.run_prefix, config.name))
                sweep_unfinished(config.run_dir)
                mirror = mirror_of(config)
                mirror.pull((*DRIVER_FILES, *WORKER_FILES))
                RemoteCheckpoints(config.bucket, config.run_prefix, config.run_dir).fetch_newest()
                stack.enter_context(mirror.pushing(DRIVER_FILES))
        yield lease
