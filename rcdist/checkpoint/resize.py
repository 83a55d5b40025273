"""Read a checkpoint that another number of workers wrote: convert it once per node, into a folder of that node."""

import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from rcdist.checkpoint.manifest import ZERO_FOLDER
from rcdist.checkpoint.untrusted import refuse_code
from rcdist.errors import CheckpointError


@contextmanager
def converted(folder: Path, *, node: int, is_first_of_node: bool) -> Iterator[Path]:
    """Convert a ZeRO checkpoint (stages 1 to 3) to DeepSpeed's universal form, which every world size can read.

    Every rank enters; the first of each node converts into a new folder that only this user can open, and deletes it
    when all have read it: DeepSpeed unpickles what is there without any restriction.

    Args:
        folder: the checkpoint.
        node: number of this rank's node.
        is_first_of_node: one worker per node says so.

    Raises:
        CheckpointError: the conversion failed on some node; it carries the tool's last line.
    """
    own = _convert(folder) if is_first_of_node else None
    made: list[tuple[int, _Conversion | None]] = [(0, None)] * dist.get_world_size()
    dist.all_gather_object(made, (node, own))
    results = {where: result for where, result in made if result is not None}
    try:
        failed = next((result.failure for result in results.values() if result.failure), None)
        if failed is not None:
            raise CheckpointError(
                "checkpoint", folder, f"cannot be converted to another number of workers ({failed})", "Use as many"
            )
        yield results[node].target
        dist.barrier()
    finally:
        if own is not None:
            shutil.rmtree(own.target, ignore_errors=True)


@dataclass(frozen=True)
class _Conversion:
    """Hold where the universal form is, and what went wrong."""

    target: Path
    failure: str | None = None


def _convert(folder: Path) -> _Conversion:
    """Write the universal form."""
    # A run has one owner: what bears its name here was left by a worker that was killed.
    prefix = f"rcdist-universal-{hashlib.sha256(str(folder.parent).encode()).hexdigest()[:16]}-"
    for left in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        shutil.rmtree(left, ignore_errors=True)
    try:
        target = Path(tempfile.mkdtemp(prefix=prefix))
    except OSError as error:
        return _Conversion(Path(tempfile.gettempdir()) / "none", f"{tempfile.gettempdir()}: {error.strerror}")
    try:
        refuse_code(folder)
    except CheckpointError as error:
        return _Conversion(target, str(error))
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    command += ["--input_folder", str(folder / ZERO_FOLDER), "--output_folder", str(target / ZERO_FOLDER)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return _Conversion(target)
    return _Conversion(target, (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
