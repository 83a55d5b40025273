"""The packed folder: a model for inference as files that are proved by digest, of two bits a weight."""

# model.safetensors   trained matrices as codes (uint8, four a byte) and a scale, embedding and vectors as they are
# tokenizer/          as in a checkpoint
# packed.json         settings that make the model, digests of files, frozen matrices and tokenizer
# README.md           the model card

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rcdist.checkpoint.manifest import TOKENIZER
from rcdist.config import JobConfig
from rcdist.config.cli import config_from_dict
from rcdist.data.tokenizer import Tokenizer, load_tokenizer
from rcdist.errors import CheckpointError
from rcdist.inference.packed import fill_packed, packed_tensors
from rcdist.model.lm import LanguageModel
from rcdist.model.reservoir import build_bank
from rcdist.tracking.provenance import package_versions

DESCRIPTION = "packed.json"
WEIGHTS = "model.safetensors"
CARD = "README.md"
FORMAT_VERSION = 1
_KEPT = ("name", "seed", "model", "reservoir")
"""Sections of the run's settings that make the model."""


class _File(BaseModel):
    """Say what a file of the folder has."""

    bytes: int
    sha256: str


class _Description(BaseModel):
    """Hold what packed.json says."""

    format_version: int
    settings: dict[str, Any]
    step: int
    reservoir_digest: str
    tokenizer_digest: str
    files: dict[str, _File]
    versions: dict[str, str]


@dataclass(frozen=True)
class PackedFolder:
    """Hold what a packed folder has.

    Attributes:
        model: packed.
        tokenizer: proved by digest.
        config: settings that make the model; what they do not say has its default.
        step: at which it was taken.
    """

    model: LanguageModel
    tokenizer: Tokenizer
    config: JobConfig
    step: int


def is_packed(folder: Path) -> bool:
    """Say whether a folder is a packed one."""
    return (folder / DESCRIPTION).is_file()


def write_packed(
    folder: Path, model: LanguageModel, tokenizer: Tokenizer, config: JobConfig, step: int, card: str
) -> None:
    """Write a packed folder into an existing one that is empty.

    Args:
        folder: is complete with packed.json, which is written last.
        model: trained, not packed.
        tokenizer: of the model.
        config: of the run.
        step: of the checkpoint.
        card: text of README.md.
    """
    write_tensors(folder, packed_tensors(model), model.bank.digest(), tokenizer, config, step, card)


def write_tensors(
    folder: Path,
    tensors: dict[str, Tensor],
    reservoir_digest: str,
    tokenizer: Tokenizer,
    config: JobConfig,
    step: int,
    card: str,
) -> None:
    """Write a packed folder of tensors as `packed_tensors` names them; the rest is as of `write_packed`."""
    save_file(tensors, folder / WEIGHTS, metadata={"format": "rcdist-packed"})
    (folder / TOKENIZER).mkdir()
    tokenizer.save(folder / TOKENIZER)
    (folder / CARD).write_text(card)
    _describe(folder, config, step, reservoir_digest, tokenizer.digest)


def _describe(folder: Path, config: JobConfig, step: int, reservoir: str, tokenizer: str) -> None:
    settings = config.model_dump(mode="json", include={*_KEPT, "data", "train"})
    settings["data"] = {"seq_len": config.data.seq_len}
    settings["train"] = {"precision": config.train.precision, "global_batch_tokens": config.train.global_batch_tokens}
    files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    description = _Description(
        format_version=FORMAT_VERSION,
        settings=settings,
        step=step,
        reservoir_digest=reservoir,
        tokenizer_digest=tokenizer,
        files={name: _File(bytes=path.stat().st_size, sha256=_sha256(path)) for name, path in files.items()},
        versions=package_versions(),
    )
    (folder / DESCRIPTION).write_text(description.model_dump_json(indent=1))


def read_packed(folder: Path, device: torch.device) -> PackedFolder:
    """Read a packed folder; its frozen matrices are made again from their specs and proved by digest.

    Raises:
        CheckpointError: damaged, of another format, or its files are not those that were written.
    """
    description = _read_description(folder)
    for name, expected in description.files.items():
        _check_file(folder, name, expected)
    config = config_from_dict(description.settings, JobConfig, source=f"in {DESCRIPTION}")
    bank = build_bank(config.architecture)
    _check(folder, "frozen matrices", bank.digest(), description.reservoir_digest)
    tokenizer = load_tokenizer(folder / TOKENIZER)
    _check(folder, "tokenizer", tokenizer.digest, description.tokenizer_digest)
    try:
        tensors: dict[str, Tensor] = load_file(folder / WEIGHTS)
        with torch.device("meta"):
            model = LanguageModel(config.architecture, build_bank(config.architecture), seed=config.seed)
        fill_packed(model, bank, tensors, device)
    except (OSError, SafetensorError, RuntimeError, KeyError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise _damaged(folder, f"{WEIGHTS} does not fit its settings ({reason})") from error
    return PackedFolder(model, tokenizer, config, description.step)


def _read_description(folder: Path) -> _Description:
    try:
        description = _Description.model_validate_json((folder / DESCRIPTION).read_bytes())
    except (OSError, ValidationError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error.strerror
        raise _damaged(folder, f"{DESCRIPTION} cannot be read ({reason})") from error
    if description.format_version != FORMAT_VERSION:
        rule = f"format version {description.format_version}, this rcdist reads version {FORMAT_VERSION}"
        raise _damaged(folder, rule)
    return description


def _check_file(folder: Path, name: str, expected: _File) -> None:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
        raise _damaged(folder, f"{name} is not there")
    size = path.stat().st_size
    if size != expected.bytes:
        raise _damaged(folder, f"{name} has {size} bytes, {expected.bytes} were written")
    _check(folder, name, _sha256(path), expected.sha256)


def _check(folder: Path, what: str, found: str, expected: str) -> None:
    if found != expected:
        raise _damaged(folder, f"{what}: digest {found[:16]}, {expected[:16]} was written")


def _damaged(folder: Path, rule: str) -> CheckpointError:
    return CheckpointError("checkpoint", str(folder), rule, "Export it again")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
