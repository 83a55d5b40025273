"""Load the model of a training checkpoint for evaluation and generation, without Ray and without its optimizer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from rcdist.checkpoint.find import find_at
from rcdist.checkpoint.manifest import TOKENIZER, Manifest, read_settings
from rcdist.checkpoint.weights import read_trained_weights
from rcdist.config import JobConfig
from rcdist.data.tokenizer import Tokenizer, load_tokenizer
from rcdist.errors import CheckpointError, ConfigError
from rcdist.inference.folder import is_packed, read_packed
from rcdist.model.lm import LanguageModel
from rcdist.model.reservoir import build_bank
from rcdist.ops.host import prepare_host, release_freed


@dataclass(frozen=True)
class LoadedModel:
    """Hold what a checkpoint stands for.

    Attributes:
        model: in evaluation mode, on `device`, in the precision it was trained in.
        tokenizer: the one the model was trained with, proved by digest.
        config: the run's resolved configuration; of a packed folder only what makes the model.
        step: optimizer steps done.
        folder: the checkpoint or packed folder itself.
        manifest: the checkpoint's; None: it is a packed folder.
    """

    model: LanguageModel
    tokenizer: Tokenizer
    config: JobConfig
    step: int
    folder: Path
    manifest: Manifest | None = None


def choose_device(choice: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """Return where to compute; auto: on the first GPU if there is one.

    Raises:
        ConfigError: there is no GPU.
    """
    if choice == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device", "cuda", "torch finds 0 GPUs on this machine", "Use auto or cpu")
    return torch.device("cpu" if choice == "cpu" or not torch.cuda.is_available() else "cuda")


def load_model(path: Path, device: torch.device) -> LoadedModel:
    """Load a checkpoint or a packed folder; frozen matrices are made again from their specs and proved by digest.

    Args:
        path: a run's folder, a step-... folder or a packed folder.
        device: where the model is to be.

    Raises:
        CheckpointError: damaged, or its reservoir or tokenizer cannot be made again with the same digest.
    """
    if is_packed(path):
        packed = read_packed(path, device)
        release_freed()  # of tables of a byte a weight
        if device.type == "cpu":
            prepare_host()
        return LoadedModel(packed.model, packed.tokenizer, packed.config, packed.step, path)
    if device.type == "cpu":
        prepare_host()
    found = find_at(path)
    folder, manifest = found.folder, found.manifest
    config = JobConfig(**read_settings(folder))
    bank = build_bank(config.architecture)
    found.check_reservoir(bank.digest())
    tokenizer = load_tokenizer(folder / TOKENIZER)
    if tokenizer.vocab_size > config.model.vocab_size:
        raise CheckpointError(
            "checkpoint",
            folder,
            f"its tokenizer's highest id is {tokenizer.vocab_size - 1}, its model.vocab_size={config.model.vocab_size}",
            "Use another checkpoint",
        )
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
    return LoadedModel(model.to(device).eval(), tokenizer, config, manifest.step, folder, manifest)
