"""Read a checkpoint that another number of workers wrote: convert it once per node, into a folder of that node."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist

from rcdist.checkpoint.manifest import ZERO_FOLDER
from rcdist.errors import CheckpointError


@contextmanager
def converted(folder: Path, *, is_first_of_node: bool) -> Iterator[Path]:
    """Convert a ZeRO checkpoint (stages 1 to 3) to DeepSpeed's universal form, which every world size can read.

    Every rank enters; the first of each node converts, and deletes the result when all have read it.

    Args:
        folder: the checkpoint.
        is_first_of_node: one worker per node says so.

    Raises:
        CheckpointError: the conversion failed on some node; it carries the tool's last line.
    """
    # The same name for all workers of a node; of runs side by side on a node the folders differ.
    target = Path(tempfile.gettempdir()) / "rcdist-universal" / folder.parent.name / folder.name
    failure = _convert(folder, target) if is_first_of_node else None
    failures: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(failures, failure)
    failed = next((line for line in failures if line is not None), None)
    try:
        if failed is not None:
            raise CheckpointError(
                "checkpoint", folder, f"cannot be converted to another number of workers ({failed})", "Use as many"
            )
        yield target
        dist.barrier()
    finally:
        if is_first_of_node:
            shutil.rmtree(target, ignore_errors=True)


def _convert(folder: Path, target: Path) -> str | None:
    """Write the universal form; return what went wrong."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    command += ["--input_folder", str(folder / ZERO_FOLDER), "--output_folder", str(target / ZERO_FOLDER)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return None
    return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
