"""Architecture: what a model is, its shape and its reservoir taken together, with the plan laid out over its blocks."""

from dataclasses import dataclass
from functools import cached_property

from rcdist.config.model import ModelConfig
from rcdist.config.plan import BlockPlan, ReservoirPlan, parse_plan
from rcdist.config.reservoir import ReservoirConfig


@dataclass(frozen=True)
class Architecture:
    """Hold what determines a model's parameters.

    Attributes:
        model: shape and arithmetic.
        reservoir: what is frozen, shared, inserted or left out.
    """

    model: ModelConfig
    reservoir: ReservoirConfig

    @cached_property
    def plan(self) -> ReservoirPlan:
        """Return the parsed plan."""
        return parse_plan(self.reservoir.plan)

    @cached_property
    def blocks(self) -> tuple[BlockPlan, ...]:
        """Return one block plan per layer."""
        return self.plan.tile(self.model.num_layers)

    def shape(self, letter: str) -> tuple[int, int]:
        """Return (outputs, inputs) of the matrix `letter`."""
        width, glu_width = self.model.width, self.model.glu_width
        return {"G": (glu_width, width), "U": (glu_width, width), "D": (width, glu_width)}.get(letter, (width, width))
