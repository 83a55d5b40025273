"""Objects in S3 or Google Cloud Storage by their names, and whole folders of them that are complete or not there."""

import contextlib
import hashlib
import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

from rcdist.storage import new_folder

SCHEMES = ("s3", "gs")
"""What a bucket's URL may begin with; `s3` is also MinIO, R2 and others by AWS_ENDPOINT_URL."""
_LIST = "files.json"
_PIECE = 16 * 2**20


def is_bucket(path: str) -> bool:
    """Say whether a path names a bucket and no folder."""
    return path.partition("://")[0] in SCHEMES and "://" in path


@cache
def open_bucket(url: str) -> "Bucket":
    """Return the bucket of a URL, one per process; connects to nothing yet."""
    return Bucket(url)


class Bucket:
    """Read and write objects below a prefix, by names relative to it.

    Credentials come from where AWS's and Google's own tools look for them: environment, files of the user, the
    machine's role. Every method raises OSError with the provider's words; an object is there whole or not at all.

    Args:
        url: s3://bucket/prefix or gs://bucket/prefix.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._opened: tuple[Any, str] | None = None

    def _open(self) -> tuple[Any, str]:
        if self._opened is None:
            from pyarrow.fs import FileSystem

            try:
                filesystem, root = FileSystem.from_uri(self.url)
            except ValueError as error:  # pyarrow's word for a URL that it cannot read
                raise OSError(str(error)) from error
            if not root:
                raise OSError("it names no bucket")
            self._opened = filesystem, root
        return self._opened

    @property
    def filesystem(self) -> Any:
        """Return what pyarrow and Ray take as a file system."""
        return self._open()[0]

    def path(self, name: str) -> str:
        """Return the path of an object within `filesystem`."""
        return f"{self._open()[1]}/{name}"

    def read(self, name: str) -> bytes:
        """Return an object; FileNotFoundError where there is none."""
        with self.filesystem.open_input_stream(self.path(name)) as stream:
            return bytes(stream.read())

    def read_json(self, name: str) -> dict[str, Any]:
        """Return an object as a JSON object, {} for none and for what is no JSON object."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            found = json.loads(self.read(name))
            return found if isinstance(found, dict) else {}
        return {}

    def write(self, name: str, data: bytes | str) -> None:
        """Write an object; who reads it meanwhile has the old one."""
        with self.filesystem.open_output_stream(self.path(name)) as stream:
            stream.write(data.encode() if isinstance(data, str) else data)

    def exists(self, name: str) -> bool:
        """Say whether there is such an object."""
        from pyarrow.fs import FileType

        return bool(self.filesystem.get_file_info(self.path(name)).type == FileType.File)

    def upload(self, source: Path, name: str) -> None:
        """Write a file as an object. Cost: one read; big ones go in parts."""
        with source.open("rb") as file, self.filesystem.open_output_stream(self.path(name)) as stream:
            shutil.copyfileobj(file, stream, _PIECE)

    def download(self, name: str, target: Path) -> dict[str, Any]:
        """Read an object into a file, and return its size and SHA-256 as a checkpoint's lists say them."""
        digest, size = hashlib.sha256(), 0
        target.parent.mkdir(parents=True, exist_ok=True)
        with self.filesystem.open_input_stream(self.path(name)) as stream, target.open("wb") as file:
            while piece := stream.read(_PIECE):
                file.write(piece)
                digest.update(piece)
                size += len(piece)
        return {"sha256": digest.hexdigest(), "bytes": size}

    def list(self, prefix: str) -> dict[str, int]:
        """Return the sizes of all objects below a prefix, by their names relative to it."""
        from pyarrow.fs import FileSelector, FileType

        root = self.path(prefix)
        found = self.filesystem.get_file_info(FileSelector(root, recursive=True, allow_not_found=True))
        return {each.path.removeprefix(f"{root}/"): each.size for each in found if each.type == FileType.File}

    def modified(self, name: str) -> float | None:
        """Return when an object was written, Unix time, None where there is none."""
        found = self.filesystem.get_file_info(self.path(name)).mtime
        return found.timestamp() if found is not None else None

    def delete(self, name: str) -> None:
        """Delete an object, if there is one."""
        with contextlib.suppress(FileNotFoundError):
            self.filesystem.delete_file(self.path(name))

    def delete_all(self, prefix: str) -> None:
        """Delete every object below a prefix."""
        for name in self.list(prefix):
            self.delete(f"{prefix}/{name}")
        with contextlib.suppress(OSError):  # what some tools leave behind to mark a folder
            self.filesystem.delete_dir(self.path(prefix))

    def push_folder(self, source: Path, prefix: str) -> None:
        """Write a folder that will not change any more, its list last: without that it counts as not there."""
        described = {}
        for file in sorted(path for path in source.rglob("*") if path.is_file()):
            name = file.relative_to(source).as_posix()
            with file.open("rb") as handle:
                digest = hashlib.file_digest(handle, "sha256").hexdigest()
            self.upload(file, f"{prefix}/{name}")
            described[name] = {"sha256": digest, "bytes": file.stat().st_size}
        self.write(f"{prefix}/{_LIST}", json.dumps(described))

    def has_folder(self, prefix: str) -> bool:
        """Say whether a folder was pushed, whole."""
        return self.exists(f"{prefix}/{_LIST}")

    def pull_folder(self, prefix: str, target: Path) -> bool:
        """Bring a folder that was pushed, whole and proved, and return whether it was there."""
        described = self.read_json(f"{prefix}/{_LIST}")
        if not described:
            return False
        with contextlib.suppress(FileNotFoundError), new_folder(target) as temporary:
            for name, expected in described.items():
                if self.download(f"{prefix}/{name}", temporary / name) != expected:
                    raise OSError(f"{self.url}/{prefix}/{name} is not what its list says: delete {prefix}")
            return True
        return False
