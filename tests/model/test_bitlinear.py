"""Trained and frozen linear layers, what they share, and the norms before them."""

import torch

from rcdist.config import Architecture, ModelConfig, ReservoirConfig
from rcdist.model.bitlinear import BitLinear, FrozenLinear, Head, InputNorms, ProjectionBuilder, project_layers
from rcdist.model.init import InitKey
from rcdist.model.reservoir import build_bank
from rcdist.ops.quantise import quantise_tokens

MODEL = ModelConfig(num_layers=4, width=16, glu_width=24)


def builder(plan: str, **settings: object) -> ProjectionBuilder:
    config = ReservoirConfig(plan=plan, **settings)
    return ProjectionBuilder(Architecture(MODEL, config), build_bank(Architecture(MODEL, config)))


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


def test_gains_start_where_they_are_told_to() -> None:
    made = builder("cG@a", gain_init={"c": 0.0}).build
    assert made(0, "c", InitKey(0)).gain.tolist() == [0.0] * 16
    assert made(0, "G", InitKey(0)).gain.tolist() == [1.0] * 24


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
    _, shared = InputNorms(MODEL, 16, ("f", "c"))(x)
    assert shared[0] is shared[1]
    config = MODEL.model_copy(update={"norm": "per_projection"})
    norms = InputNorms(config, 16, ("f", "c"))
    with torch.no_grad():
        norms.own[1].weight[0] = 5
    total, own = norms(x, x)
    assert torch.equal(total, 2 * x)
    assert not torch.equal(own[0][1], own[1][1])
    assert sum(p.numel() for p in norms.parameters()) == 48


def test_projections_of_one_input_are_those_of_each_alone() -> None:
    build = builder("c@a")
    layers = [build.build(0, letter, InitKey(0, letter)) for letter in "fcg"]
    parts = tuple(quantise_tokens(torch.randn(2, 3, 16)))
    together = project_layers([parts] * 3, layers, separately=False)
    apart = project_layers([parts] * 3, layers, separately=True)
    assert all(torch.equal(a, b) for a, b in zip(together, apart, strict=True))


def test_the_head_s_loss_is_that_of_its_logits() -> None:
    head = Head(InitKey(0, "head"), (50, 16), 0.1, "nearest")
    parts, targets, weights = quantise_tokens(torch.randn(7, 16)), torch.randint(50, (7,)), torch.rand(7)
    nats = torch.nn.functional.cross_entropy(head(*parts), targets, reduction="none")
    torch.testing.assert_close(head(*parts, targets, weights), (nats * weights).sum())
