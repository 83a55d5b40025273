"""Receive the frozen matrices: one object in Ray's store, unpacked once per worker, proved by digest on every rank."""

import ray

from rcdist.config import JobConfig
from rcdist.errors import ClusterError
from rcdist.model.reservoir import PackedBank, ReservoirBank, build_bank
from rcdist.train.collectives import gather_objects


def receive_bank(
    config: JobConfig, packed_ref: "ray.ObjectRef[PackedBank] | None", expected_digest: str
) -> tuple[ReservoirBank, dict[str, float]]:
    """Build this worker's reservoir bank and prove that every rank holds the driver's bytes.

    Args:
        config: the run; `reservoir.source` says whether the bytes are received or regenerated from the seed.
        packed_ref: the packed bank in the object store; None when every worker regenerates it.
        expected_digest: digest of the bank as the driver built it.

    Returns:
        The bank, and the metrics of how it came.

    Raises:
        ClusterError: a rank's digest differs; names the rank and both digests.
    """
    bank = build_bank(config.architecture) if packed_ref is None else ReservoirBank.from_packed(ray.get(packed_ref))
    digests = gather_objects(bank.digest())
    for rank, digest in enumerate(digests):
        if digest != expected_digest:
            raise ClusterError(
                "reservoir",
                digest,
                f"the frozen matrices of rank {rank} differ from the driver's, digest {expected_digest}",
                "Start again; if it repeats, use reservoir.source=regenerate and check that machine's memory",
            )
    metrics = {"reservoir/digest_ok": digests.count(expected_digest) / len(digests)}
    return bank, metrics | {"wire/start_bytes": 0.0 if packed_ref is None else stored_bytes(packed_ref)}


def stored_bytes(reference: "ray.ObjectRef[PackedBank]") -> float:
    """Return what Ray's object store says: the bytes of an object, times the nodes that hold it."""
    import ray.experimental

    found = ray.experimental.get_object_locations([reference])[reference]
    return float(found["object_size"] * len(found["node_ids"]))


def compare_matrix(bank: ReservoirBank, key: str, expected_digest: str) -> ClusterError | None:
    """Compare the digest of one resident matrix with what it was, on every rank; a collective call.

    Returns:
        The error that names the first rank whose bytes differ, and both digests; None if all are as they were.
    """
    for rank, digest in enumerate(gather_objects(bank.digest_of(key))):
        if digest != expected_digest:
            return ClusterError(
                f"reservoir matrix {key}",
                digest,
                f"the bytes of rank {rank} changed in memory, digest {expected_digest} before",
                "Continue from the last checkpoint on another machine: its memory is damaged",
            )
    return None
