"""Initial values of trained tensors: decided by (seed, parameter name), never by the order of drawing."""

import hashlib
import json
from dataclasses import dataclass

import torch
from torch import nn

from rcdist.config import ModelConfig, per_letter

UNIT_GAIN = 1.508
"""Standard deviation times sqrt(inputs) at which a quantised normal matrix has unit gain.

A normal matrix of deviation s has beta = mean|W| = sqrt(2 / pi) s = 0.798 s, and P(|W| > beta / 2) = 0.690 of its
entries stay non-zero, so for unit-rms input an output has variance inputs * 0.690 * 0.637 s^2, which is 1 at
s = 1.508 / sqrt(inputs).
"""


@dataclass(frozen=True)
class InitKey:
    """Name a place in the model, and with it the random stream of the parameter there.

    A module initialises its own parameters when it is built, so that a library that partitions parameters as soon
    as a module exists sees final values.
    """

    seed: int
    name: str = ""

    def at(self, part: str | int) -> "InitKey":
        """Return the key of the submodule or parameter `part`."""
        return InitKey(self.seed, f"{self.name}.{part}" if self.name else str(part))

    def normal(self, shape: tuple[int, ...], std: float) -> nn.Parameter:
        """Make a parameter of independent N(0, std^2) values, in the default dtype. On the meta device: no values."""
        if torch.get_default_device().type == "meta":
            return nn.Parameter(torch.empty(shape))
        digest = hashlib.sha256(json.dumps([self.seed, self.name]).encode()).digest()
        generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little"))
        values = torch.normal(0.0, std, shape, generator=generator, dtype=torch.float32, device="cpu")
        return nn.Parameter(values.to(device=torch.get_default_device(), dtype=torch.get_default_dtype()))


def ones(width: int) -> nn.Parameter:
    """Make a parameter of `width` ones."""
    return nn.Parameter(torch.ones(width))


def constant(width: int, value: float) -> nn.Parameter:
    """Make a parameter of `width` equal values."""
    return nn.Parameter(torch.full((width,), value, dtype=torch.get_default_dtype()))


def matrix_std(model_config: ModelConfig, letter: str, inputs: int) -> float:
    """Return the initial deviation of the trained matrix `letter`: its `init_gain` relative to unit gain.

    A map that does not name the letter leaves it at the default of the setting. down_proj is divided by
    sqrt(2 num_layers) besides, so that the residual stream does not grow with depth (Radford et al. 2019, section 2.3).
    """
    default = per_letter(ModelConfig.model_fields["init_gain"].default, letter, 1.0)
    std: float = per_letter(model_config.init_gain, letter, default) * UNIT_GAIN / inputs**0.5
    return std / (2 * model_config.num_layers) ** 0.5 if letter == "D" else std
