"""Objects and folders in a real S3: whole or not there, and one line about what the provider refuses."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from rcdist.bucket import Bucket, is_bucket
from tests.s3_server import BUCKET, s3_server


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    with s3_server():
        yield Bucket(f"s3://{BUCKET}/some/prefix/")


def test_what_is_a_bucket() -> None:
    assert is_bucket("s3://a/b") and is_bucket("gs://a")
    assert not is_bucket("~/rcdist") and not is_bucket("http://a/b") and not is_bucket("s3") and not is_bucket("s3:/a")


def test_objects_are_written_read_listed_and_deleted(bucket: Bucket, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        bucket.read("a/b.json")
    assert bucket.read_json("a/b.json") == {} and not bucket.exists("a/b.json") and bucket.modified("a/b.json") is None
    bucket.write("a/b.json", '{"x": 1}')
    bucket.write("a/c/d", b"12345")
    bucket.write("ab", b"")
    assert bucket.read_json("a/b.json") == {"x": 1} and bucket.read_json("a/c/d") == {}
    assert bucket.list("a") == {"b.json": 8, "c/d": 5} and bucket.list("nowhere") == {}
    assert bucket.exists("a/c/d") and bucket.modified("a/c/d") is not None
    bucket.upload(tmp_path_file(tmp_path, 3_000_000), "big")
    assert bucket.download("big", tmp_path / "deep" / "back")["bytes"] == 3_000_000
    assert (tmp_path / "deep" / "back").read_bytes() == (tmp_path / "big").read_bytes()
    bucket.delete("a/b.json")
    bucket.delete("a/b.json")
    bucket.delete_all("a")
    assert bucket.list("a") == {} and bucket.exists("ab")


def tmp_path_file(folder: Path, size: int) -> Path:
    (folder / "big").write_bytes(bytes(range(256)) * (size // 256) + bytes(size % 256))
    return folder / "big"


def test_a_folder_is_there_when_its_list_is(bucket: Bucket, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "inner").mkdir(parents=True)
    (source / "x").write_text("one")
    (source / "inner" / "y").write_text("two")
    assert not bucket.has_folder("folder") and not bucket.pull_folder("folder", tmp_path / "back")
    assert not (tmp_path / "back").exists()
    bucket.push_folder(source, "folder")
    assert bucket.has_folder("folder") and bucket.pull_folder("folder", tmp_path / "back")
    assert (tmp_path / "back" / "inner" / "y").read_text() == "two"
    bucket.write("folder/x", "six")  # of the same size
    with pytest.raises(OSError, match=r"folder/x is not what its list says"):
        bucket.pull_folder("folder", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_what_cannot_be_is_an_os_error(bucket: Bucket, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="NO_SUCH_BUCKET"):
        Bucket("s3://not-there-at-all/x").write("a", b"b")
    with pytest.raises(OSError, match=r".+"):
        Bucket("s3://").write("a", b"b")
