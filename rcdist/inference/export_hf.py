"""Write a trained model as a Hugging Face folder, which transformers loads without rcdist."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from rcdist.config import JobConfig
from rcdist.data.tokenizer import Tokenizer
from rcdist.inference import huggingface
from rcdist.model.bitlinear import BitLinear, FrozenLinear
from rcdist.model.lm import Block, LanguageModel
from rcdist.ops.topology import HadamardMap
from rcdist.ops.weights import quantised_weight

MODEL_TYPE = "rcdist_matmulfree"
_CODE = ("configuration_rcdist.py", "modeling_rcdist.py")
_PROJECTIONS = {
    "f": "mlgru.f_proj",
    "c": "mlgru.c_proj",
    "g": "mlgru.g_proj",
    "o": "mlgru.o_proj",
    "r": "mlgru.r_proj",
    "G": "glu.gate_proj",
    "U": "glu.up_proj",
    "D": "glu.down_proj",
}
_VECTORS = {
    "mlgru.input.norm.weight": "mixer_norm",
    "mlgru.o_norm.weight": "o_norm",
    "mlgru.o_norm.inner_weight": "inner_norm",
    "mlgru.g_bias": "g_bias",
    "mlgru.r_norm.weight": "r_norm",
    "glu.input.norm.weight": "glu_norm",
    "glu.input.own.0.weight": "own_glu_norm",
    "glu.down_norm.weight": "down_norm",
}
"""Parameters of a block here, and in the modelling code."""


def write_huggingface(folder: Path, model: LanguageModel, tokenizer: Tokenizer, config: JobConfig, card: str) -> None:
    """Write config.json, model.safetensors, tokenizer, modelling code and README.md into an existing folder.

    Ternary matrices, trained or frozen, are int8 codes and a scale; hadamard ones are their signs; all else is float32.
    """
    described, tensors = _describe(model, config)
    tokenizer_files = _tokenizer_files(tokenizer)
    eod = tokenizer.eod_id
    described |= {"bos_token_id": eod, "eos_token_id": eod, "pad_token_id": eod, "dtype": "float32"}
    described |= {
        "model_type": MODEL_TYPE,
        "architectures": ["RcdistForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_rcdist.RcdistConfig",
            "AutoModelForCausalLM": "modeling_rcdist.RcdistForCausalLM",
        },
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for name, content in {"config.json": described, **tokenizer_files}.items():
        (folder / name).write_text(json.dumps(content, indent=1))
    source = Path(huggingface.__file__).parent
    for name in _CODE:
        shutil.copyfile(source / name, folder / name)
    (folder / "README.md").write_text(card)


def _describe(model: LanguageModel, config: JobConfig) -> tuple[dict[str, Any], dict[str, Tensor]]:
    shape, reservoir = config.model, config.reservoir
    matrices: dict[str, dict[str, Any]] = {}
    tensors: dict[str, Tensor] = {"embedding.weight": _float(model.embedding.weight)}
    names: dict[object, str] = {}
    layers, gains = [], []
    for number, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        letters: dict[str, str] = {}
        for letter, path in _PROJECTIONS.items():
            layer = _find(block, path)
            if layer is None:
                continue
            identity = layer.key if isinstance(layer, FrozenLinear) else id(layer)
            if identity not in names:
                names[identity] = f"m{len(names)}"
                kind, parts = _matrix(layer)
                matrices[names[identity]] = kind
                tensors |= {f"matrices.{names[identity]}.{part}": tensor for part, tensor in parts.items()}
            letters[letter] = names[identity]
            if isinstance(layer, FrozenLinear) and layer.gain is not None:
                gains.append(f"{number}.{letter}")
                tensors[f"blocks.{number}.gains.{letter}"] = _float(layer.gain)
        layers.append(letters)
        for ours, theirs in _VECTORS.items():
            vector = _find(block, ours)
            if vector is not None:
                tensors[f"blocks.{number}.{theirs}"] = _float(vector)
        for name, norm in zip(block.mlgru.names, block.mlgru.input.own, strict=False):
            tensors[f"blocks.{number}.own_norms.{name}"] = _float(_find(norm, "weight"))
    bounds = model.lower_bounds
    tensors["lower_bounds"] = (
        torch.zeros(shape.num_layers, shape.width) if bounds is None else _float(_find(bounds, "weight"))
    )
    tensors["head_norm"] = _float(model.output.norm.weight)
    if shape.norm == "per_projection":
        tensors["own_head_norm"] = _float(_find(model.output, "own.0.weight"))
    tensors |= {f"head.{part}": tensor for part, tensor in _matrix(model.head)[1].items()}
    inserts = any("r" in letters for letters in layers)
    described = {
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.width,
        "intermediate_size": shape.glu_width,
        "num_hidden_layers": shape.num_layers,
        "rms_norm_eps": shape.norm_eps,
        "norm": shape.norm,
        "readout_norm": shape.readout_norm,
        "output_gate": reservoir.output_gate,
        "leak_rate": None if reservoir.leak_rate == "trained" else reservoir.leak_rate,
        "placement": reservoir.placement if inserts else None,
        "combine": reservoir.combine,
        "layers": layers,
        "matrices": matrices,
        "gains": gains,
    }
    return described, tensors


def _matrix(layer: BitLinear | FrozenLinear) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return how a matrix is described, and its tensors."""
    if isinstance(layer, BitLinear):
        rounded = quantised_weight(layer.weight)
        assert rounded.scale is not None
        codes, scale = rounded.values, rounded.scale.detach()
    else:
        matrix, factor = layer.linear_map()
        scale = torch.tensor(factor)
        if isinstance(matrix, HadamardMap) and matrix.is_shared:
            signs = torch.cat([matrix.first_SW, matrix.second_SW]).to("cpu", torch.int8)
            return {"kind": "hadamard", "shape": list(matrix.shape)}, {"signs": signs, "scale": scale.float()}
        dense = matrix.times(torch.eye(matrix.shape[1])).t()
        codes = dense.round().to(torch.int8)
        if not torch.equal(codes.float(), dense):
            # The first version of hadamard matrices: transforms around a permutation.
            return {"kind": "dense", "shape": list(matrix.shape)}, {"table": dense.contiguous(), "scale": scale.float()}
    return {"kind": "ternary", "shape": list(codes.shape)}, {
        "codes": codes.cpu().contiguous(),
        "scale": scale.cpu().float(),
    }


def _find(module: torch.nn.Module, path: str) -> Any:
    found: Any = module
    for part in path.split("."):
        found = found[int(part)] if part.isdecimal() and int(part) < len(found) else getattr(found, part, None)
        if found is None:
            return None
    return found


def _float(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32).clone(memory_format=torch.contiguous_format)


def _tokenizer_files(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return tokenizer.json, which puts the document boundary in front of a text, and its tokenizer_config.json."""
    description, boundary = tokenizer.describe()
    description["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": boundary, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [
            {"SpecialToken": {"id": boundary, "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
            {"Sequence": {"id": "B", "type_id": 0}},
        ],
        "special_tokens": {boundary: {"id": boundary, "ids": [tokenizer.eod_id], "tokens": [boundary]}},
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": boundary,
        "eos_token": boundary,
        "pad_token": boundary,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        # The text of a special token within a text is text, as in training.
        "split_special_tokens": True,
    }
    return {"tokenizer.json": description, "tokenizer_config.json": settings}
