"""A packed model says what the trained one says, for every plan; its folder is whole, or refused by name."""

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rcdist.checkpoint.manifest import TOKENIZER
from rcdist.config import JobConfig
from rcdist.data.tokenizer import Tokenizer
from rcdist.errors import EXIT_BAD_CONFIG, CheckpointError, ConfigError
from rcdist.inference.export import complete_folder
from rcdist.inference.folder import DESCRIPTION, WEIGHTS, read_packed, write_packed
from rcdist.inference.packed import PackedLinear, pack_model
from rcdist.model.lm import LanguageModel
from rcdist.model.reservoir import build_bank
from rcdist.ops.two_bits import TwoBitMap
from rcdist.ops.weights import WeightsQuantisedOnce

CPU = torch.device("cpu")
CHOICES = [
    {"plan": "T"},
    {"plan": "T cG@a"},
    {"plan": "T cG=@a"},
    {"plan": "cG@a", "topology": {"c": "hadamard", "G": "block"}},
    {"plan": "T c+r@a", "placement": "post_scan", "output_gate": "tied"},
    {"plan": "T c+r@a", "placement": "recurrent"},
    {"plan": "T c+r@a", "placement": "reset_gate", "output_gate": "none"},
    {"plan": "T c+r@a", "placement": "token_shift", "topology": {"r": "ring"}},
    {"plan": "T f@a", "placement": "gate", "gate": "f"},
    {"plan": "T U@a", "topology": "identity"},
]

BOTH = [(choice, norm) for choice, norm in zip(CHOICES, itertools.cycle(["shared", "per_projection"]), strict=False)]
"""Each with one kind of norm."""


def settings(choice: dict, **model: object) -> JobConfig:
    shape = {"num_layers": 3, "width": 32, "glu_width": 64, "vocab_size": 300}
    return JobConfig(model=shape | model, reservoir={"block_size": 8} | choice)


def trained(config: JobConfig) -> LanguageModel:
    """Return a model none of whose vectors has its initial value."""
    model = LanguageModel(config.architecture, build_bank(config.architecture), seed=3).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, mean=1.0, std=0.3)
    return model


def write(out: Path, *parts: Any) -> None:
    with complete_folder(out) as folder:
        write_packed(folder, *parts)


def tokens(count: int = 40) -> tuple[Tensor, Tensor]:
    drawn = torch.randint(300, (2, count + 1), generator=torch.Generator().manual_seed(0))
    return drawn[:, :-1], drawn[:, 1:]


@torch.no_grad()
def check_same(model: LanguageModel, packed: LanguageModel) -> None:
    inputs, targets = tokens()
    weights = torch.rand(inputs.shape)
    with WeightsQuantisedOnce():
        torch.testing.assert_close(packed(inputs), model(inputs), rtol=1e-5, atol=1e-5)
        for given in (None, weights):
            expected = model(inputs, None, targets, given)
            torch.testing.assert_close(packed(inputs, None, targets, given), expected, rtol=1e-6, atol=0)
        logits, state = model.prefill(inputs[:, :7], last_only=True)
        packed_logits, packed_state = packed.prefill(inputs[:, :7], last_only=True)
        for t in range(7, 20):
            logits, state = model.step(inputs[:, t], state)
            packed_logits, packed_state = packed.step(inputs[:, t], packed_state)
        torch.testing.assert_close(packed_logits, logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("choice", "norm"), BOTH, ids=str)
def test_packed_in_memory_and_from_its_folder_it_is_the_same_model(choice: dict, norm: str, tmp_path: Path) -> None:
    config = settings(choice, norm=norm)
    model = trained(config)
    tokenizer = Tokenizer(None)
    write(tmp_path / "out", model, tokenizer, config, 7, "card")
    read = read_packed(tmp_path / "out", CPU)
    assert (read.step, read.tokenizer.digest) == (7, tokenizer.digest)
    assert read.config.architecture == config.architecture
    check_same(model, read.model)
    check_same(model, pack_model(copy.deepcopy(model)))


def test_matrices_take_two_bits_a_weight_in_memory_and_on_disk(tmp_path: Path) -> None:
    config = settings({"plan": "T cG@a c=@b c=@b"}, num_layers=4, width=384, glu_width=768)
    model = trained(config)
    write(tmp_path / "out", model, Tokenizer(None), config, 1, "card")
    packed = read_packed(tmp_path / "out", CPU).model
    layers = {id(layer): layer for layer in packed.modules() if isinstance(layer, PackedLinear)}
    maps = {id(matrix): matrix for layer in layers.values() if isinstance(matrix := layer.matrix, TwoBitMap)}
    weights = sum(matrix.shape[0] * matrix.shape[1] for matrix in maps.values() if matrix.shape[0] != 300)
    held = sum(matrix.packed.numel() for matrix in maps.values() if matrix.shape[0] != 300)
    assert held <= 0.14 * 2 * weights, "of bf16"
    # A frozen matrix that blocks share is there once, and so is a trained one.
    assert len(maps) == 7 + 5 + 2 * 6 + 1 + 2 + 1
    assert not list(packed.bank.buffers())
    assert sum(p.numel() for p in packed.parameters()) < 300 * 384 + 4 * 12 * 768
    vectors = sum(4 * p.numel() for p in packed.parameters())
    trained_weights = sum(p.numel() for p in model.parameters() if p.dim() == 2 and len(p) != 4)
    assert (tmp_path / "out" / WEIGHTS).stat().st_size < vectors + trained_weights / 4 + 20_000


def damage_bit(folder: Path) -> None:
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-5] ^= 4
    (folder / WEIGHTS).write_bytes(data)


def change_description(folder: Path, **changes: object) -> None:
    description = json.loads((folder / DESCRIPTION).read_text())
    for name, value in changes.items():
        description[name] = value
    (folder / DESCRIPTION).write_text(json.dumps(description))


DAMAGES = {
    "a bit": (damage_bit, r"model\.safetensors: digest \w+, \w+ was written"),
    "cut": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-9]), "has .* bytes, .* were written"),
    "gone": (lambda f: (f / WEIGHTS).unlink(), r"model\.safetensors is not there"),
    "another tokenizer": (lambda f: change_description(f, tokenizer_digest="0"), "tokenizer: digest"),
    "other frozen matrices": (lambda f: change_description(f, reservoir_digest="0"), "frozen matrices: digest"),
    "no JSON": (lambda f: (f / DESCRIPTION).write_text("{"), r"packed\.json cannot be read"),
    "a list": (lambda f: (f / DESCRIPTION).write_text("[]"), r"packed\.json cannot be read"),
    "a later format": (lambda f: change_description(f, format_version=99), "format version 99"),
    "no settings": (lambda f: change_description(f, settings=[]), r"packed\.json"),
    "files elsewhere": (lambda f: change_description(f, files={"../x": {"bytes": 1, "sha256": ""}}), "is not there"),
    "odd files": (lambda f: change_description(f, files={"README.md": 3}), r"packed\.json|README"),
    "no tokenizer": (lambda f: [p.unlink() for p in (f / TOKENIZER).iterdir()], "is not there"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_folder_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    config = settings({"plan": "T cG@a"})
    write(tmp_path / "out", trained(config), Tokenizer(None), config, 1, "card")
    harm, expected = DAMAGES[name]
    harm(tmp_path / "out")
    with pytest.raises((CheckpointError, ConfigError), match=expected) as caught:
        read_packed(tmp_path / "out", CPU)
    assert caught.value.exit_code == EXIT_BAD_CONFIG and "\n" not in str(caught.value)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    for name, width in (("a", 32), ("b", 40)):
        config = settings({"plan": "T"}, width=width)
        write(tmp_path / name, trained(config), Tokenizer(None), config, 1, "card")
    files = json.loads((tmp_path / "b" / DESCRIPTION).read_text())["files"]
    (tmp_path / "a" / WEIGHTS).write_bytes((tmp_path / "b" / WEIGHTS).read_bytes())
    change_description(tmp_path / "a", files=files)
    with pytest.raises(CheckpointError, match=r"model\.safetensors does not fit its settings"):
        read_packed(tmp_path / "a", CPU)
