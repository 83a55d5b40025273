"""A public MatMul-free checkpoint, imported, says what the public equations say; what is not one is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from rcdist.errors import CheckpointError
from rcdist.inference.importing import import_public
from rcdist.inference.load import load_model
from tests.data.kinds import own_bpe

LAYERS, WIDTH, INNER, VOCABULARY, EPS = 3, 32, 48, 400, 1e-6


def random_weights() -> dict[str, Tensor]:
    """Return a checkpoint of the public layout, with no tensor at its initial value."""
    draw = torch.Generator().manual_seed(0)
    weights = {
        "model.embeddings.weight": torch.randn(VOCABULARY, WIDTH, generator=draw),
        "model.lower_bounds": torch.randn(LAYERS, WIDTH, generator=draw),
        "model.norm.weight": torch.rand(WIDTH, generator=draw) + 0.5,
    }

    def linear(name: str, outputs: int, inputs: int) -> None:
        weights[f"{name}.weight"] = torch.randn(outputs, inputs, generator=draw) * 0.1
        weights[f"{name}.norm.weight"] = torch.rand(inputs, generator=draw) + 0.5

    linear("lm_head", VOCABULARY, WIDTH)
    for i in range(LAYERS):
        layer = f"model.layers.{i}"
        for name in ("attn_norm", "mlp_norm", "attn.g_norm"):
            weights[f"{layer}.{name}.weight"] = torch.rand(WIDTH, generator=draw) + 0.5
        for letter in "ifgo":
            linear(f"{layer}.attn.{letter}_proj", WIDTH, WIDTH)
        linear(f"{layer}.mlp.gate_proj", 2 * INNER, WIDTH)
        linear(f"{layer}.mlp.down_proj", WIDTH, INNER)
    return weights


def public_logits(weights: dict[str, Tensor], tokens_T: Tensor) -> Tensor:
    """Compute logits by the equations of the public code: one norm, one rounding of tokens and weights a product."""

    def norm(x: Tensor, name: str) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS) * weights[f"{name}.weight"].double()

    def linear(x: Tensor, name: str) -> Tensor:
        x = norm(x, f"{name}.norm")
        scale = 127.0 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
        matrix = weights[f"{name}.weight"].double()
        beta = matrix.abs().mean().clamp(min=1e-5)
        ternary = (matrix / beta).round().clamp(-1, 1) * beta
        return (x * scale).round().clamp(-128, 127) / scale @ ternary.t()

    x = weights["model.embeddings.weight"].double()[tokens_T]
    bounds = weights["model.lower_bounds"].double().softmax(0).cumsum(0)
    bounds = bounds - bounds[0]
    for i in range(LAYERS):
        layer = f"model.layers.{i}"
        z = norm(x, f"{layer}.attn_norm")
        f = bounds[i] + (1 - bounds[i]) * linear(z, f"{layer}.attn.f_proj").sigmoid()
        c = F.silu(linear(z, f"{layer}.attn.i_proj")) * (1 - f)
        h, states = torch.zeros(WIDTH, dtype=torch.float64), []
        for t in range(len(tokens_T)):
            h = f[t] * h + c[t]
            states.append(h)
        gate = norm(linear(z, f"{layer}.attn.g_proj"), f"{layer}.attn.g_norm")
        x = x + linear(gate * F.silu(torch.stack(states)), f"{layer}.attn.o_proj")
        gate, up = linear(norm(x, f"{layer}.mlp_norm"), f"{layer}.mlp.gate_proj").chunk(2, -1)
        x = x + linear(F.silu(gate) * up, f"{layer}.mlp.down_proj")
    return linear(norm(x, "model.norm"), "lm_head")


@pytest.fixture
def public(tmp_path: Path) -> Path:
    folder = tmp_path / "public"
    own_bpe().save(folder)
    save_file(random_weights(), folder / "model.safetensors")
    described = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "vocab_size": VOCABULARY, "rms_norm_eps": EPS}
    described |= {"model_type": "hgrn_bit", "intermediate_size": INNER, "num_heads": 1, "expand_ratio": 1}
    (folder / "config.json").write_text(json.dumps(described))
    return folder


@pytest.mark.parametrize("form", ["safetensors", "two files", "bin"])
@torch.no_grad()
def test_logits_are_those_of_the_public_equations(form: str, public: Path, tmp_path: Path) -> None:
    weights = random_weights()
    if form != "safetensors":
        (public / "model.safetensors").unlink()
    if form == "two files":
        names = sorted(weights)
        save_file({name: weights[name] for name in names[:20]}, public / "model-00001-of-00002.safetensors")
        save_file({name: weights[name] for name in names[20:]}, public / "model-00002-of-00002.safetensors")
    elif form == "bin":
        torch.save(weights, public / "pytorch_model.bin")
    line = import_public(public, tmp_path / "out")
    assert "imported" in line
    loaded = load_model(tmp_path / "out", torch.device("cpu"))
    tokens = torch.randint(VOCABULARY, (30,), generator=torch.Generator().manual_seed(1))
    expected = public_logits(weights, tokens).float()
    found = loaded.model(tokens[None])[0]
    # Where a value lies between two codes, float32 may round it to the other.
    assert ((found - expected).abs() < 1e-4 * expected.abs().max()).float().mean() > 0.9
    torch.testing.assert_close(found, expected, rtol=0, atol=0.03 * float(expected.abs().max()))
    assert loaded.tokenizer.digest == own_bpe().digest


def test_what_is_not_one_is_refused(public: Path, tmp_path: Path) -> None:
    def broken(name: str, change: dict[str, object] | None = None, **tensors: Tensor | None) -> Path:
        folder = tmp_path / name
        shutil.copytree(public, folder)
        described = json.loads((folder / "config.json").read_text()) | (change or {})
        (folder / "config.json").write_text(json.dumps(described))
        weights = load_file(folder / "model.safetensors") | {key.replace("__", "."): t for key, t in tensors.items()}
        save_file({key: t for key, t in weights.items() if t is not None}, folder / "model.safetensors")
        return folder

    cases = [
        (tmp_path, "config.json cannot be read"),
        (broken("conv", {"use_short_conv": True}), "use_short_conv is True"),
        (broken("kind", {"model_type": "llama"}), "model_type is 'llama'"),
        (broken("shape", {"hidden_size": "many"}), "describes no model"),
        (broken("small", {"hidden_size": 40}), "is of shape"),
        (broken("less", model__norm__weight=None), "model.norm.weight is not there"),
        (broken("more", model__extra=torch.ones(1)), "model.extra is not of this layout"),
        (broken("nan", model__norm__weight=torch.full((WIDTH,), torch.nan)), "not finite"),
        (broken("tokens", {"vocab_size": 100}), "highest id"),
    ]
    truncated = broken("truncated")
    (truncated / "model.safetensors").write_bytes((truncated / "model.safetensors").read_bytes()[:1000])
    for folder, message in [*cases, (truncated, "cannot be read")]:
        with pytest.raises(CheckpointError, match=message) as refused:
            import_public(folder, tmp_path / "out")
        assert "\n" not in str(refused.value) and not (tmp_path / "out").exists()
