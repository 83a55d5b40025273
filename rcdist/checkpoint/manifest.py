"""The manifest: everything about a checkpoint but its tensors, and the list of its files with their digests."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from rcdist.checkpoint.state import LoopState, SpikeState
from rcdist.errors import CheckpointError
from rcdist.storage import write_file
from rcdist.tracking.ledger import Ledger
from rcdist.tracking.provenance import package_versions

FORMAT_VERSION = 3
MANIFEST = "manifest.json"
CONFIG = "config.json"
TOKENIZER = "tokenizer"
ZERO_FOLDER = "zero"
"""Folder inside a checkpoint that DeepSpeed's files are in."""


@dataclass
class Manifest:
    """Hold everything about a checkpoint but its tensors.

    Attributes:
        state: of the training loop.
        world_size: workers that wrote it.
        zero_stage: DeepSpeed ZeRO stage that wrote it.
        ledger: what was used by then.
        mlflow_run_id: the run that a resume continues.
        reservoir: digest per frozen matrix, and their specs.
        tokenizer_digest: digest of the tokenizer.
        data_digest: digest of the tokenised training corpus.
        files: path inside the checkpoint -> {"sha256", "bytes"}.
        versions: of rcdist and the packages that the bytes depend on.
    """

    state: LoopState
    world_size: int
    zero_stage: int
    ledger: Ledger
    mlflow_run_id: str | None
    reservoir: dict[str, Any]
    tokenizer_digest: str
    data_digest: str
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=package_versions)
    format_version: int = FORMAT_VERSION

    @property
    def step(self) -> int:
        """Return the optimizer steps done."""
        return self.state.step

    @property
    def eval_loss_nats(self) -> float | None:
        """Return the held-out loss measured at this step, None when it was not."""
        return self.state.records[-1].get("eval/loss_nats") if self.state.records else None


def rank_list_name(rank: int) -> str:
    """Name the list of the files that a rank has written, with their sizes and digests."""
    return f"files-{rank:05d}.json"


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write everything but the files, which each rank lists when it has written its own.

    With this file, and the lists of all ranks, a checkpoint becomes valid.
    """
    fields = {name: value for name, value in asdict(manifest).items() if name != "files"}
    write_file(folder / MANIFEST, json.dumps(fields, indent=1))


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a checkpoint in a folder; see `assemble_manifest`."""
    return assemble_manifest(lambda name: (folder / name).read_text(), folder)


def assemble_manifest(read: Callable[[str], str], place: Path | str) -> Manifest:
    """Put the manifest and the lists of all ranks together, also of an earlier format version.

    Args:
        read: returns a file of the checkpoint; raises OSError.
        place: of the checkpoint, for messages.

    Raises:
        CheckpointError: there is none, it cannot be read, or it has another format version.
    """
    path = MANIFEST
    try:
        data = json.loads(read(path))
        version = data["format_version"]
        if version in range(1, FORMAT_VERSION + 1):
            manifest = _parse(data)
            for rank in range(manifest.world_size):
                path = rank_list_name(rank)
                manifest.files |= json.loads(read(path))
            for name in manifest.files:
                _check_inside(name)
            return manifest
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            "checkpoint", place, f"{path} cannot be read ({error})", "Use another checkpoint"
        ) from error
    raise CheckpointError(
        "checkpoint",
        place,
        f"format version {version}, this rcdist reads versions 1 to {FORMAT_VERSION}",
        "Read it with the rcdist version that wrote it",
    )


def read_settings(folder: Path) -> dict[str, Any]:
    """Read the settings of the run that wrote a checkpoint, as JobConfig takes them."""
    settings: dict[str, Any] = json.loads((folder / CONFIG).read_text())
    settings["reservoir"].setdefault("version", 1)  # was not a setting while there was only one
    return settings


def _check_inside(name: str) -> None:
    """Refuse the name of a file that would lie outside the checkpoint's folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or not path.parts or ".." in path.parts or "\\" in name or "\0" in name:
        raise ValueError(f"{name!r} is not a file of the checkpoint")


def _parse(data: dict[str, Any]) -> Manifest:
    if data["format_version"] == 1:  # the state was not apart, and the held-out loss stood there twice
        data.pop("eval_loss_nats")
        data["state"] = {name: data.pop(name) for name in LoopState.__dataclass_fields__ if name in data}
    state, ledger = data.pop("state"), data.pop("ledger")
    state = LoopState(**state | {"spikes": SpikeState(**state.get("spikes", {}))})
    return Manifest(state=state, ledger=Ledger(**ledger), **data | {"format_version": FORMAT_VERSION})
