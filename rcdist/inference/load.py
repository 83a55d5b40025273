"""Load the model of a training checkpoint for evaluation and generation, without Ray and without its optimizer."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from rcdist.config import JobConfig
from rcdist.data.tokenizer import Tokenizer, load_tokenizer
from rcdist.errors import CheckpointError
from rcdist.model.lm import LanguageModel
from rcdist.model.reservoir import build_bank
from rcdist.ops.host import prepare_host
from rcdist.train.checkpoint import CONFIG, TOKENIZER, Manifest, find_newest_valid, verify_checkpoint
from rcdist.train.weights import read_trained_weights


@dataclass(frozen=True)
class LoadedModel:
    """Hold what a checkpoint stands for.

    Attributes:
        model: in evaluation mode, on `device`, in the precision it was trained in.
        tokenizer: the one the model was trained with, proved by digest.
        config: the run's resolved configuration.
        manifest: the checkpoint's.
        folder: the checkpoint itself.
    """

    model: LanguageModel
    tokenizer: Tokenizer
    config: JobConfig
    manifest: Manifest
    folder: Path


def resolve_checkpoint(path: Path) -> tuple[Path, Manifest]:
    """Accept a checkpoint folder, or a run's folder and take its newest valid checkpoint; verify every file.

    Raises:
        CheckpointError: nothing there, or damaged.
    """
    if not path.is_dir():
        raise CheckpointError("checkpoint", path, "there is no such folder", "Give a run's folder or a step-... folder")
    if path.name.startswith("step-"):
        return path, verify_checkpoint(path)
    found = find_newest_valid(path)
    if found is None:
        raise CheckpointError("checkpoint", path, "the folder has no step-... checkpoint", "Train the run first")
    return found[0], verify_checkpoint(found[0])


def load_model(path: Path, device: torch.device) -> LoadedModel:
    """Load a checkpoint; its frozen matrices are made again from their specs and proved by digest.

    Raises:
        CheckpointError: damaged, or its reservoir or tokenizer cannot be made again with the same digest.
    """
    if device.type == "cpu":
        prepare_host()
    folder, manifest = resolve_checkpoint(path)
    config = JobConfig(**json.loads((folder / CONFIG).read_text()))
    bank = build_bank(config.model, config.reservoir)
    expected = manifest.reservoir["digest"]
    if bank.digest() != expected:
        raise CheckpointError(
            "checkpoint",
            folder,
            f"its reservoir has digest {expected}, this version of rcdist makes {bank.digest()} from the same specs",
            f"Use rcdist {manifest.versions['rcdist']}, which wrote it",
        )
    tokenizer = load_tokenizer(folder / TOKENIZER)
    if tokenizer.digest != manifest.tokenizer_digest:
        raise CheckpointError(
            "checkpoint",
            folder,
            f"its tokenizer has digest {tokenizer.digest}, its manifest says {manifest.tokenizer_digest}",
            "Use another checkpoint",
        )
    model = LanguageModel(config.model, config.reservoir, bank, seed=config.seed)
    model.load_state_dict(read_trained_weights(folder, manifest), strict=True)
    if config.train.precision == "bf16":
        model.to(torch.bfloat16)
    return LoadedModel(model.to(device).eval(), tokenizer, config, manifest, folder)
