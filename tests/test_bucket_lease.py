"""One owner of a run in a bucket: who is refused, who takes over, and what the one who was taken over from notices."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rcdist import bucket_lease as module
from rcdist.bucket import Bucket
from rcdist.bucket_lease import BucketLease
from rcdist.errors import ConfigError, HeldError
from rcdist.lease import describe_self
from tests.s3_server import BUCKET, s3_server


@pytest.fixture(scope="module")
def server() -> Iterator[None]:
    with s3_server():
        yield


@pytest.fixture
def bucket(server: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    monkeypatch.setattr(module, "_BEAT_S", 0.1)
    monkeypatch.setattr(module, "_DEAD_AFTER_S", 0.6)
    monkeypatch.setattr(module, "_SETTLE_S", 0.1)
    return Bucket(f"s3://{BUCKET}/{tmp_path.name}")


def test_a_second_owner_is_refused_and_nothing_is_left(bucket: Bucket) -> None:
    with BucketLease(bucket, "runs/a", "a") as lease:
        lease.prove()
        with (
            pytest.raises(HeldError, match=f"the run is held by process {os.getpid()} on "),
            BucketLease(bucket, "runs/a", "a"),
        ):
            pass
    assert bucket.list("runs/a") == {}
    with BucketLease(bucket, "runs/a", "a"):
        pass


def elsewhere(beat: int) -> str:
    return json.dumps(describe_self() | {"machine": "another", "token": "other", "beat": beat})


def test_a_holder_elsewhere_is_taken_over_when_its_heart_stands(bucket: Bucket) -> None:
    bucket.write("runs/a/lease.json", elsewhere(1))
    with BucketLease(bucket, "runs/a", "a") as lease:
        assert not lease.is_lost
        bucket.write("runs/a/lease.json", elsewhere(2))  # and it wakes up
        deadline = time.monotonic() + 10
        while not lease.is_lost and time.monotonic() < deadline:
            bucket.write("runs/a/lease.json", elsewhere(2))
            time.sleep(0.02)
        with pytest.raises(ConfigError, match="was taken over by another"):
            lease.prove()
    assert bucket.exists("runs/a/lease.json")  # the other's


def test_a_holder_elsewhere_whose_heart_beats_is_not(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    beats = iter(range(1, 1000))
    real = bucket.read_json
    bucket.write("runs/a/lease.json", elsewhere(0))

    def read(name: str) -> dict:
        bucket.write(name, elsewhere(next(beats)))
        return real(name)

    monkeypatch.setattr(bucket, "read_json", read)
    with pytest.raises(HeldError), BucketLease(bucket, "runs/a", "a"):
        pass
