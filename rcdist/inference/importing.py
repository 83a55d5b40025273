"""Read a public MatMul-free checkpoint, of the layout of ridgerchu/matmulfreellm (HGRNBit), into a packed folder."""

# Shapes: N outputs, K inputs.

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rcdist.config import JobConfig
from rcdist.data.tokenizer import Tokenizer, read_tokenizer
from rcdist.errors import CheckpointError, RcdistError
from rcdist.inference.export import check_is_new, complete_folder
from rcdist.inference.folder import write_tensors
from rcdist.model.reservoir import build_bank, pack_ternary

_BLOCK_VECTORS = {
    "attn_norm.weight": "mlgru.input.norm.weight",
    "attn.f_proj.norm.weight": "mlgru.input.own.0.weight",
    "attn.i_proj.norm.weight": "mlgru.input.own.1.weight",
    "attn.g_proj.norm.weight": "mlgru.input.own.2.weight",
    "attn.g_norm.weight": "mlgru.o_norm.inner_weight",
    "attn.o_proj.norm.weight": "mlgru.o_norm.weight",
    "mlp_norm.weight": "glu.input.norm.weight",
    "mlp.gate_proj.norm.weight": "glu.input.own.0.weight",
    "mlp.down_proj.norm.weight": "glu.down_norm.weight",
}
_BLOCK_MATRICES = {
    "attn.f_proj.weight": ("mlgru.f_proj",),
    "attn.i_proj.weight": ("mlgru.c_proj",),
    "attn.g_proj.weight": ("mlgru.g_proj",),
    "attn.o_proj.weight": ("mlgru.o_proj",),
    "mlp.gate_proj.weight": ("glu.gate_proj", "glu.up_proj"),
    "mlp.down_proj.weight": ("glu.down_proj",),
}
"""Several of ours are the parts, one above the other, of one of theirs, and have its scale between them."""
_VECTORS = {
    "model.embeddings.weight": "embedding.weight",
    "model.lower_bounds": "lower_bounds.weight",
    "model.norm.weight": "output.norm.weight",
    "lm_head.norm.weight": "output.own.0.weight",
}
_EXPECTED = {
    "model_type": "hgrn_bit",
    "use_short_conv": False,
    "expand_ratio": 1,
    "hidden_act": "swish",
    "use_lower_bound": True,
}
"""What its config.json must say where it says anything."""


def import_public(source: Path, out: Path) -> str:
    """Write a packed folder, and return a line that says what it holds.

    Its numbers are the public model's with the fused kernels, whose norms all have the epsilon of its config.json.

    Args:
        source: folder with config.json, weights (.safetensors or .bin) and tokenizer.json.
        out: must not exist, or be an empty folder.

    Raises:
        CheckpointError: it is not of this layout, or damaged.
        DataError: its tokenizer cannot be used.
        ConfigError: `out` cannot be written.
    """
    check_is_new(out)
    described = _read_description(source)
    config = _configure(source, described)
    tokenizer = read_tokenizer(source / "tokenizer.json")
    if tokenizer.vocab_size > config.model.vocab_size:
        rule = f"its tokenizer's highest id is {tokenizer.vocab_size - 1}, its vocab_size {config.model.vocab_size}"
        raise _refusal(source, rule)
    tensors = _convert(source, _read_weights(source), config)
    with complete_folder(out) as folder:
        digest = build_bank(config.architecture).digest()
        write_tensors(folder, tensors, digest, tokenizer, config, 0, _card(source, config, tokenizer))
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    return f"{out}: {config.name!r}, imported, {size:,} bytes of weights"


def _read_description(source: Path) -> dict[str, Any]:
    try:
        described = json.loads((source / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise _refusal(source, f"its config.json cannot be read ({error})") from error
    if not isinstance(described, dict):
        raise _refusal(source, "its config.json is no object")
    for name, expected in _EXPECTED.items():
        if described.get(name, expected) != expected:
            raise _refusal(source, f"{name} is {described[name]!r} in its config.json, {expected!r} can be imported")
    return described


def _configure(source: Path, described: dict[str, Any]) -> JobConfig:
    width, ratio = described.get("hidden_size"), described.get("hidden_ratio") or 4
    inner = described.get("intermediate_size")
    try:
        if inner is None:  # as the public code rounds it
            inner = 256 * -(-int(width * ratio * 2 / 3) // 256)  # type: ignore[operator]
        model = {
            "num_layers": described["num_hidden_layers"],
            "width": width,
            "glu_width": inner,
            "vocab_size": described["vocab_size"],
            "norm": "per_projection",
            "readout_norm": "gate",
            "norm_eps": described.get("rms_norm_eps", 1e-6),
        }
        return JobConfig(name=source.resolve().name, model=model, reservoir={"plan": "T"})
    except (KeyError, TypeError, ValueError, RcdistError) as error:
        reason = str(error).strip().splitlines()[0]
        raise _refusal(source, f"its config.json describes no model of ours ({reason})") from error


def _read_weights(source: Path) -> dict[str, Tensor]:
    files = sorted(source.glob("*.safetensors"))
    binary = sorted(source.glob("pytorch_model*.bin"))
    if not files and not binary:
        raise _refusal(source, "there is no .safetensors and no pytorch_model.bin in it")
    weights: dict[str, Tensor] = {}
    for file in files or binary:
        try:
            weights |= load_file(file) if files else torch.load(file, map_location="cpu", weights_only=True)
        except (OSError, SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise _refusal(source, f"{file.name} cannot be read ({reason})") from error
    return weights


def _convert(source: Path, weights: dict[str, Tensor], config: JobConfig) -> dict[str, Tensor]:
    """Return the tensors of a packed folder; each of theirs is used, and has the shape that it must have."""
    shape = config.model
    sizes = {"glu.gate_proj": (2 * shape.glu_width, shape.width), "glu.down_proj": (shape.width, shape.glu_width)}
    left = dict(weights)
    tensors: dict[str, Tensor] = {}

    def take(name: str, expected: tuple[int, ...]) -> Tensor:
        tensor = left.pop(name, None)
        if tensor is None or tuple(tensor.shape) != expected:
            found = "not there" if tensor is None else f"of shape {tuple(tensor.shape)}"
            raise _refusal(source, f"{name} is {found}, {expected} is needed")
        if not tensor.isfinite().all():
            raise _refusal(source, f"{name} has numbers that are not finite")
        return tensor.float()

    def take_matrix(name: str, ours: tuple[str, ...], expected: tuple[int, int], prefix: str) -> None:
        codes_NK, scale = _round(take(name, expected))
        for part, codes in zip(ours, codes_NK.chunk(len(ours)), strict=True):
            tensors[f"{prefix}{part}.codes"] = torch.from_numpy(pack_ternary(codes.contiguous().numpy()))
            tensors[f"{prefix}{part}.scale"] = scale.clone()

    vectors = {
        "embedding.weight": (shape.vocab_size, shape.width),
        "lower_bounds.weight": (shape.num_layers, shape.width),
    }
    for theirs, ours in _VECTORS.items():
        tensors[ours] = take(theirs, vectors.get(ours, (shape.width,))).contiguous()
    take_matrix("lm_head.weight", ("head",), (shape.vocab_size, shape.width), "")
    for i in range(shape.num_layers):
        for theirs, name in _BLOCK_VECTORS.items():
            width = shape.glu_width if name == "glu.down_norm.weight" else shape.width
            tensors[f"blocks.{i}.{name}"] = take(f"model.layers.{i}.{theirs}", (width,)).contiguous()
        for theirs, names in _BLOCK_MATRICES.items():
            expected = sizes.get(names[0], (shape.width, shape.width))
            take_matrix(f"model.layers.{i}.{theirs}", names, expected, f"blocks.{i}.")
    if left:
        raise _refusal(source, f"{min(left)} is not of this layout")
    return tensors


def _round(weight_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Return ternary codes and their scale, as the public code rounds a whole matrix."""
    scale = weight_NK.abs().mean().clamp(min=1e-5)
    return (weight_NK / scale).round().clamp(-1, 1).to(torch.int8), scale


def _card(source: Path, config: JobConfig, tokenizer: Tokenizer) -> str:
    return f"""# {config.name}

Imported from a public MatMul-free checkpoint ({source.name}); two bits a weight.
Whose it is, what it was trained on and under which terms, its source says.

{config.model.num_layers} blocks of width {config.model.width}, inner width {config.model.glu_width}, \
{tokenizer.vocab_size} token ids.
"""


def _refusal(source: Path, rule: str) -> CheckpointError:
    remedy = "Give a folder of an HGRNBit model, with tokenizer.json"
    return CheckpointError("checkpoint", str(source), rule, remedy)
