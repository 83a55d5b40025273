"""The language model: parallel and recurrent form, plans, bf16, checkpointing, initial values, sizes."""

import copy

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rcdist.config import Architecture, ModelConfig, ReservoirConfig
from rcdist.model.init import InitKey
from rcdist.model.lm import LanguageModel, LowerBounds
from rcdist.model.reservoir import build_bank

PLANS = ["T", "T cG@a", "fcgoGUD@a", "c=@a T", "o+r T+r@b", "fcgoGUD"]


FAMILY = [
    {"plan": plan, "placement": placement, "topology": topology, **rest}
    for placement, plan in (
        ("post_scan", "c+r@a T"),
        ("recurrent", "c+r@a T"),
        ("reset_gate", "G+r T+r@b"),
        ("token_shift", "T T+r"),
        ("gate", "f@a T"),
    )
    for topology, rest in (
        ("dense", {}),
        ("block", {"output_gate": "tied"}),
        ("hadamard", {"output_gate": "none"}),
        ({"r": "ring", "f": "ring"}, {"gain": False}),
    )
]
FAMILY = [choice | {"gate": "f"} if choice["placement"] == "gate" else choice for choice in FAMILY]
FAMILY += [
    {"plan": "c+r", "placement": "recurrent", "leak_rate": 0.4, "topology": "ring"},
    {"plan": "T", "leak_rate": 0.4, "output_gate": "none"},
    {"plan": "T", "output_gate": "tied"},
]


def build_family(choice: dict, **settings: object) -> LanguageModel:
    config = ModelConfig(**{"num_layers": 3, "width": 24, "glu_width": 48, "vocab_size": 50} | settings)
    reservoir = ReservoirConfig(**{"block_size": 8} | choice)
    return LanguageModel(Architecture(config, reservoir), build_bank(Architecture(config, reservoir)), 0)


def build(plan: str, seed: int = 0, gain: bool = True, **settings: object) -> LanguageModel:
    config = ModelConfig(**{"num_layers": 3, "width": 24, "glu_width": 40, "vocab_size": 50} | settings)
    reservoir = ReservoirConfig(plan=plan, gain=gain)
    return LanguageModel(Architecture(config, reservoir), build_bank(Architecture(config, reservoir)), seed)


def batch(batch_size: int = 3, time: int = 21) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(50, (batch_size, time + 1), generator=generator)
    starts = torch.rand(batch_size, time, generator=generator) < 0.1
    return tokens[:, :-1], starts, tokens[:, 1:]


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("norm", ["shared", "per_projection"])
def test_recurrent_form_equals_parallel_form(plan: str, norm: str) -> None:
    check_recurrent_form(build(plan, norm=norm))


@pytest.mark.parametrize("choice", FAMILY, ids=lambda choice: "-".join(str(value) for value in choice.values()))
def test_recurrent_form_of_the_whole_family(choice: dict) -> None:
    norm = ("shared", "per_projection")[FAMILY.index(choice) % 2]  # each placement and each gate meets both
    check_recurrent_form(build_family(choice, norm=norm))


def check_recurrent_form(model: LanguageModel) -> None:
    # In float32 a value that lies between two codes of int8 may be rounded to either, and later tokens remember it.
    close = torch.cat([difference < 1e-4 for difference in recurrent_differences(model)])
    assert close.float().mean() > 0.8
    for difference in recurrent_differences(model.double()):
        assert difference.max() < 1e-6


def recurrent_differences(model: LanguageModel) -> list[Tensor]:
    """Return the largest difference of logits between the two forms, (B,) of each position."""
    tokens, starts, _ = batch()
    differences = []
    with torch.no_grad():
        parallel = model(tokens, starts)
        state = model.init_state(len(tokens))
        for t in range(tokens.shape[1]):
            state = state * ~starts[:, t].view(1, -1, 1)
            logits, state = model.step(tokens[:, t], state)
            differences.append((logits - parallel[:, t]).abs().amax(-1))
    return differences


@pytest.mark.parametrize("placement", ["post_scan", "recurrent", "reset_gate", "token_shift"])
def test_prefill_resumes(placement: str) -> None:
    model = build_family({"plan": "T cG@a+r", "placement": placement})
    tokens, starts, _ = batch()
    with torch.no_grad():
        whole, last = model.prefill(tokens, starts_BT=starts)
        assert torch.equal(whole, model(tokens, starts))
        first, state = model.prefill(tokens[:, :8], None, starts[:, :8])
        second, resumed = model.prefill(tokens[:, 8:], state, starts[:, 8:])
    torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(resumed, last, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        only, same = model.prefill(tokens, starts_BT=starts, last_only=True)
    assert torch.equal(only, whole[:, -1:]) and torch.equal(same, last)
    assert last.shape == model.init_state(3).shape


@pytest.mark.parametrize("placement", ["post_scan", "recurrent", "reset_gate", "token_shift"])
def test_a_start_forgets_everything_before(placement: str) -> None:
    model = build_family({"plan": "T cG@a+r", "placement": placement})
    tokens, starts, _ = batch()
    starts = torch.zeros_like(starts)
    starts[:, 10] = True
    other = tokens.clone()
    other[:, :10] = (other[:, :10] + 1) % 50
    with torch.no_grad():
        a, b, alone = model(tokens, starts), model(other, starts), model(tokens[:, 10:])
    assert torch.equal(a[:, 10:], b[:, 10:])
    torch.testing.assert_close(a[:, 10:], alone, rtol=1e-4, atol=1e-4)
    assert not torch.equal(a[:, :10], b[:, :10])


def test_loss_is_the_weighted_sum_of_nats() -> None:
    model = build("T")
    tokens, starts, targets = batch()
    weights = torch.rand(targets.shape)
    with torch.no_grad():
        nats = F.cross_entropy(model(tokens, starts).transpose(1, 2), targets, reduction="none")
        torch.testing.assert_close(model(tokens, starts, targets), nats.sum())
        torch.testing.assert_close(model(tokens, starts, targets, weights), (nats * weights).sum())
    assert model(tokens, starts, targets).dtype == torch.float32


@pytest.mark.parametrize("plan", PLANS)
def test_every_trained_tensor_gets_a_gradient_and_trains(plan: str) -> None:
    check_training(build(plan))


@pytest.mark.parametrize("choice", FAMILY, ids=lambda choice: "-".join(str(value) for value in choice.values()))
def test_the_whole_family_trains(choice: dict) -> None:
    check_training(build_family(choice))


def check_training(model: LanguageModel) -> None:
    tokens, starts, targets = batch()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(12):
        loss = model(tokens, starts, targets)
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_activation_checkpointing_changes_nothing() -> None:
    tokens, starts, targets = batch()
    gradients = []
    for recompute in (False, True):
        model = build("T cG@a+r c=@b")
        model.activation_checkpointing = recompute
        model(tokens, starts, targets).backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_bfloat16_keeps_the_bank_and_the_state() -> None:
    model = build("T cG@a c=@b", num_layers=6, width=64, glu_width=128)
    tokens, starts, targets = batch()
    with torch.no_grad():
        expected = model(tokens, starts, targets)
    keys = {spec.key: model.bank.matrix(spec.key) for spec in model.bank.specs}
    model = model.to(torch.bfloat16)
    for key, matrix in keys.items():
        assert model.bank.matrix(key) is matrix
    assert model.blocks[2].mlgru.c_proj is model.blocks[5].mlgru.c_proj
    assert model.blocks[2].mlgru.c_proj.weight is model.blocks[5].mlgru.c_proj.weight
    assert {buffer.dtype for buffer in model.buffers()} == {torch.int8}
    loss = model(tokens, starts, targets)
    assert loss.dtype == torch.float32
    assert abs(loss - expected) < 0.01 * expected
    loss.backward()
    assert {p.grad.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.prefill(tokens)[1].dtype == torch.float32


def test_frozen_matrices_are_the_bank_s_alone() -> None:
    model = build("cG@a+r@a")
    assert not any("bank" in name for name in model.state_dict())
    assert len(list(model.buffers())) == 3
    again = copy.deepcopy(model)
    assert again.blocks[0].mlgru.c_proj.bank is again.bank


def test_a_plan_changes_no_trained_tensor() -> None:
    baseline = dict(build("T").named_parameters())
    # The baseline of the family is as wide as its members.
    wide = dict(build("T", glu_width=48).named_parameters())
    models = [(build(plan), baseline) for plan in PLANS] + [(build_family(choice), wide) for choice in FAMILY]
    for model, trained in models:
        for name, parameter in model.named_parameters():
            if not name.endswith(("gain", "g_bias")) and ".r_norm" not in name:
                assert torch.equal(parameter, trained[name]), name
    assert not torch.equal(next(build("T", seed=1).parameters()), baseline["embedding.weight"])


def test_matrices_are_drawn_under_their_own_names() -> None:
    for name, parameter in build("T").named_parameters():
        if name == "lower_bounds.weight":
            assert not parameter.any()
        elif parameter.dim() == 1:
            assert (parameter == 1).all()
        else:
            drawn = InitKey(0, name).normal(tuple(parameter.shape), 1.0)
            torch.testing.assert_close(parameter / parameter.std(), drawn / drawn.std())
    assert "blocks.2.mlgru.c_proj.weight" in dict(build("T").named_parameters())


def test_lower_bounds_rise_with_depth() -> None:
    bounds = LowerBounds(4, 3)
    torch.testing.assert_close(bounds(), torch.tensor([0.0, 0.25, 0.5, 0.75]).unsqueeze(1).expand(4, 3))
    with torch.no_grad():
        bounds.weight.normal_()
    gamma = bounds()
    assert (gamma[0] == 0).all()
    assert (gamma.diff(dim=0) > 0).all()
    assert (gamma < 1).all()


@pytest.mark.parametrize(
    ("num_layers", "width", "glu_width", "norm", "expected"),
    [
        (24, 1024, 2816, "per_projection", 374_108_160),
        (24, 1024, 2816, "shared", 374_008_832),
        (24, 2048, 5632, "per_projection", 1_364_779_008),
        (32, 2560, 6912, "per_projection", 2_702_357_504),
    ],
)
def test_published_sizes(num_layers: int, width: int, glu_width: int, norm: str, expected: int) -> None:
    with torch.device("meta"):
        model = build("T", num_layers=num_layers, width=width, glu_width=glu_width, vocab_size=32000, norm=norm)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected
    assert all(parameter.is_meta for parameter in model.parameters())
