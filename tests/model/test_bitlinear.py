"""Trained and frozen linear layers, what they share, and the norms before them."""

import torch

from rcdist.config import ModelConfig, ReservoirConfig
from rcdist.model.bitlinear import BitLinear, FrozenLinear, InputNorms, ProjectionBuilder
from rcdist.model.init import InitKey
from rcdist.model.reservoir import build_bank
from rcdist.ops.quantise import quantise_tokens

MODEL = ModelConfig(num_layers=4, width=16, glu_width=24)


def builder(plan: str, **settings: object) -> ProjectionBuilder:
    config = ReservoirConfig(plan=plan, **settings)
    return ProjectionBuilder(MODEL, config, build_bank(MODEL, config))


def test_bitlinear_keeps_its_latent_weight_and_follows_its_changes() -> None:
    layer = BitLinear(InitKey(0, "x"), (3, 5), 1.0, "nearest")
    x = torch.randn(2, 5)
    first = layer(*quantise_tokens(x))
    with torch.no_grad():
        layer.weight.mul_(2)
    torch.testing.assert_close(layer(*quantise_tokens(x)), 2 * first)


def test_frozen_linear_multiplies_the_bank_matrix_by_its_own_gain() -> None:
    build = builder("cG@a")
    layers = [build.build(i, "c", InitKey(0)) for i in range(2)]
    assert all(isinstance(layer, FrozenLinear) for layer in layers)
    assert layers[0].gain is not layers[1].gain
    tokens = quantise_tokens(torch.randn(2, 16))
    with torch.no_grad():
        layers[1].gain.mul_(3)
    torch.testing.assert_close(layers[1](*tokens), 3 * layers[0](*tokens))
    matrix = build.bank.matrix("c@a").float() * build.bank.scale("c@a")
    torch.testing.assert_close(layers[0](*tokens), (tokens.values * tokens.scale) @ matrix.t())
    assert [name for name, _ in layers[0].named_parameters()] == ["gain"]
    assert list(layers[0].named_buffers()) == []
    assert build.build(0, "G", InitKey(0)).gain.shape == (24,)


def test_without_gain_a_frozen_layer_has_no_parameter() -> None:
    assert list(builder("c@a", gain=False).build(0, "c", InitKey(0)).parameters()) == []


def test_a_shared_trained_matrix_is_one_module() -> None:
    build = builder("T c=@a")
    layers = [build.build(i, "c", InitKey(0, f"{i}")) for i in range(4)]
    assert layers[1] is layers[3]
    assert len({id(layer.weight) for layer in layers}) == 3
    assert isinstance(build.build(1, "f", InitKey(0)), BitLinear)


def test_shared_norm_quantises_once_and_own_norms_each() -> None:
    x = torch.randn(2, 3, 16)
    shared = InputNorms(MODEL, 16, ("f", "c"))(x)
    assert shared[0] is shared[1]
    config = MODEL.model_copy(update={"norm": "per_projection"})
    norms = InputNorms(config, 16, ("f", "c"))
    with torch.no_grad():
        norms.own[1].weight[0] = 5
    own = norms(x)
    assert not torch.equal(own[0].values, own[1].values)
    assert sum(p.numel() for p in norms.parameters()) == 48
