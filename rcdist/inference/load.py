"""Load the model of a training checkpoint for evaluation and generation, without Ray and without its optimizer."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from rcdist.checkpoint.find import find_at
from rcdist.checkpoint.manifest import CONFIG, TOKENIZER, Manifest
from rcdist.checkpoint.weights import read_trained_weights
from rcdist.config import JobConfig
from rcdist.data.tokenizer import Tokenizer, load_tokenizer
from rcdist.errors import CheckpointError
from rcdist.model.lm import LanguageModel
from rcdist.model.reservoir import build_bank
from rcdist.ops.host import prepare_host


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


def load_model(path: Path, device: torch.device) -> LoadedModel:
    """Load a checkpoint; its frozen matrices are made again from their specs and proved by digest.

    Raises:
        CheckpointError: damaged, or its reservoir or tokenizer cannot be made again with the same digest.
    """
    if device.type == "cpu":
        prepare_host()
    found = find_at(path)
    folder, manifest = found.folder, found.manifest
    config = JobConfig(**json.loads((folder / CONFIG).read_text()))
    bank = build_bank(config.architecture)
    found.check_reservoir(bank.digest())
    tokenizer = load_tokenizer(folder / TOKENIZER)
    if tokenizer.digest != manifest.tokenizer_digest:
        raise CheckpointError(
            "checkpoint",
            folder,
            f"its tokenizer has digest {tokenizer.digest}, its manifest says {manifest.tokenizer_digest}",
            "Use another checkpoint",
        )
    model = LanguageModel(config.architecture, bank, seed=config.seed)
    model.load_state_dict(read_trained_weights(found), strict=True)
    if config.train.precision == "bf16":
        model.to(torch.bfloat16)
    return LoadedModel(model.to(device).eval(), tokenizer, config, manifest, folder)
