"""Frozen matrices: what each is made from, its scale, shapes that a topology refuses, and a new topology."""

import json
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from rcdist.config import Architecture, JobConfig, ModelConfig, ReservoirConfig
from rcdist.config import reservoir as reservoir_settings
from rcdist.errors import ConfigError
from rcdist.estimate.cost import format_cost
from rcdist.model.cost import count_parameters, estimate_flops
from rcdist.model.lm import LanguageModel
from rcdist.model.reservoir import ReservoirBank, build_bank
from rcdist.model.specs import FrozenSpec, frozen_specs
from rcdist.ops.backend import forced
from rcdist.ops.topology import TOPOLOGIES, LinearMap, Part, Shape, Topology

MODEL = ModelConfig(num_layers=4, width=24, glu_width=40)


def test_specs_are_listed_once_in_order_of_use() -> None:
    specs = frozen_specs(Architecture(MODEL, ReservoirConfig(plan="cG@a f+r cD@a+r@x c=@b")))
    assert [(spec.key, spec.letter, spec.shape) for spec in specs] == [
        ("c@a", "c", (24, 24)),
        ("G@a", "G", (40, 24)),
        ("f.1", "f", (24, 24)),
        ("r.1", "r", (24, 24)),
        ("D@a", "D", (24, 40)),
        ("r@x", "r", (24, 24)),
    ]
    assert frozen_specs(Architecture(MODEL, ReservoirConfig(plan="T c=@b"))) == []


def test_scale_is_unit_gain_times_the_setting() -> None:
    config = ReservoirConfig(
        plan="cD@a+r@a",
        connectivity={"c": 0.25, "r": 1.0},
        input_scaling={"c": 2.0, "D": 0.5},
        spectral_radius=0.9,
    )
    scales = {spec.letter: spec.scale for spec in frozen_specs(Architecture(MODEL, config))}
    assert scales == pytest.approx({"c": 2 / 6**0.5, "D": 0.5 / 20**0.5, "r": 0.9 / 24**0.5})


def test_spec_survives_json() -> None:
    spec = FrozenSpec("c@a", "c", (5, 7), 11, "dense", 0.3, 1.0)
    assert json.loads(json.dumps(spec.to_dict())) == spec.to_dict()


def test_settings_by_letter() -> None:
    config = ReservoirConfig(
        plan="cD@a+r",
        seed={"c": 5},
        topology={"c": "hadamard", "D": "block", "r": "ring"},
        block_size={"D": 10},
        spectral_radius={"r": 0.7},
    )
    c, r, d = (next(s for s in frozen_specs(Architecture(MODEL, config)) if s.letter == letter) for letter in "crD")
    assert (c.seed, d.seed) == (5, 0)
    assert (c.topology, d.topology, r.topology) == ("hadamard", "block", "ring")
    assert (c.block_size, d.block_size, d.connectivity) == (0, 10, 0.5)
    assert (c.scale, d.scale, r.scale) == pytest.approx((1.0, 1 / 5**0.5, 0.7))
    assert (c.num_weights, d.num_weights, r.num_weights) == (0, 24 * 10, 0)


def test_a_gate_that_is_the_reservoir_takes_its_radius() -> None:
    settings = {"plan": "cg@a", "input_scaling": 3.0, "spectral_radius": 0.5}
    c, g = frozen_specs(Architecture(MODEL, ReservoirConfig(placement="gate", **settings)))
    assert g.scale == pytest.approx(c.scale / 6)
    _, plain = frozen_specs(Architecture(MODEL, ReservoirConfig(**settings)))
    assert plain.scale == pytest.approx(c.scale)


@pytest.mark.parametrize(
    ("model", "settings", "field", "numbers"),
    [
        ({"width": 20}, {"topology": "hadamard"}, "reservoir.topology", ("20 x 20", "8")),
        ({}, {"topology": "block", "block_size": 7}, "reservoir.block_size", ("24 x 24", "7")),
        ({"glu_width": 41}, {"topology": "block", "block_size": 8, "plan": "G"}, "reservoir.block_size", ("41 x 24",)),
    ],
)
def test_a_shape_that_does_not_fit_is_refused(model: dict, settings: dict, field: str, numbers: tuple) -> None:
    shape = MODEL.model_copy(update=model)
    with pytest.raises(ConfigError) as caught:
        frozen_specs(Architecture(shape, ReservoirConfig(**{"plan": "c@a", **settings})))
    assert str(caught.value).startswith(f"{field}=")
    assert all(number in str(caught.value) for number in numbers)


def test_the_block_size_that_an_error_proposes_works() -> None:
    shape = MODEL.model_copy(update={"glu_width": 36})
    with pytest.raises(ConfigError, match=r"e\.g\. 2\b") as caught:
        frozen_specs(Architecture(shape, ReservoirConfig(plan="G", topology="block", block_size=8 + 5)))
    assert "36 x 24" in str(caught.value)
    (spec,) = frozen_specs(Architecture(shape, ReservoirConfig(plan="G@a", topology="block", block_size=2)))
    assert spec.num_weights == 72


class DiagonalMap:
    """Flip signs: a structure that nothing else in the code has heard of."""

    def __init__(self, parts: Mapping[str, Tensor], shape: Shape) -> None:
        self.signs_K, self.shape = parts["signs"], shape

    def to(self, dtype: torch.dtype) -> LinearMap:
        return self

    def times(self, x_MK: Tensor) -> Tensor:
        return x_MK * self.signs_K.to(x_MK.dtype)

    def times_transposed(self, y_MN: Tensor) -> Tensor:
        return self.times(y_MN)


def check_square(shape: Shape, _: int, letter: str) -> None:
    if shape[0] != shape[1]:
        raise ConfigError("reservoir.topology", "diagonal", f"{letter} is not square", "Use another")


DIAGONAL = Topology(
    parts=lambda shape, _: {"signs": Part("signs", (shape[1],))},
    unit_gain=lambda *_: 1.0,
    flops=lambda shape, _: shape[0],
    linear_map=DiagonalMap,
    check=check_square,
)


@pytest.fixture
def diagonal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add a topology as README says: an object in ops/topology, its name in config/reservoir.py."""
    monkeypatch.setitem(TOPOLOGIES, "diagonal", DIAGONAL)
    monkeypatch.setattr(reservoir_settings, "TOPOLOGY_NAMES", (*reservoir_settings.TOPOLOGY_NAMES, "diagonal"))


def test_settings_and_topologies_have_the_same_names() -> None:
    assert tuple(TOPOLOGIES) == reservoir_settings.TOPOLOGY_NAMES


@pytest.mark.usefixtures("diagonal")
@pytest.mark.parametrize("placement", ["post_scan", "recurrent", "token_shift"])
def test_a_new_topology_needs_nothing_but_its_object_and_its_name(placement: str) -> None:
    config = ReservoirConfig(plan="T c@a+r@b", topology="diagonal", placement=placement)
    architecture = Architecture(MODEL, config)
    bank = build_bank(architecture)
    packed = bank.pack()
    assert packed.data.nbytes == 2 * MODEL.width / 4
    assert ReservoirBank.from_packed(packed).digest() == bank.digest() == packed.digest
    model = LanguageModel(architecture, bank, seed=0)
    counts = count_parameters(architecture)
    assert counts.stored == counts.trained == sum(p.numel() for p in model.parameters())
    dense = Architecture(MODEL, ReservoirConfig(plan="T c@a+r@b", placement=placement))
    fewer = estimate_flops(dense).prefill - estimate_flops(architecture).prefill
    assert fewer == (2 * MODEL.width**2 - MODEL.width) * 2 * (MODEL.num_layers // 2)
    tokens = torch.randint(MODEL.vocab_size, (2, 9))
    losses = []
    for backend in ("reference", "auto"):
        with forced(backend):
            losses.append(model(tokens[:, :-1], None, tokens[:, 1:]))
            losses[-1].backward()
    assert float(losses[0].detach()) == pytest.approx(float(losses[1].detach()), rel=1e-3)
    with torch.no_grad():
        logits, _ = model.prefill(tokens)
        state = model.init_state(2)
        for t in range(9):
            step, state = model.step(tokens[:, t], state)
        torch.testing.assert_close(step, logits[:, -1], rtol=1e-3, atol=1e-3)
    assert "diagonal" in format_cost(JobConfig(model=MODEL, reservoir=config))


@pytest.mark.usefixtures("diagonal")
def test_a_new_topology_refuses_what_it_cannot_be() -> None:
    with pytest.raises(ConfigError, match="G is not square"):
        frozen_specs(Architecture(MODEL, ReservoirConfig(plan="G@a", topology="diagonal")))
