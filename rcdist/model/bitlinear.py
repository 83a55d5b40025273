"""Linear layers with ternary weights: trained (BitLinear) and frozen (FrozenLinear), and the norm before them."""

# Shapes: K input width, N output width, ... any leading dimensions (tokens).

from torch import Tensor, nn

from rcdist.config import ModelConfig, ReservoirConfig, per_letter
from rcdist.model.frozen import matrix_shape
from rcdist.model.init import InitKey, matrix_std, ones
from rcdist.model.reservoir import ReservoirBank
from rcdist.ops.frozen import frozen_product
from rcdist.ops.norm import rms_norm
from rcdist.ops.quantise import Quantised, Rounding, quantise_tokens, quantise_weight
from rcdist.ops.ternary import ternary_product
from rcdist.ops.topology import LinearMap
from rcdist.plan import RESERVOIR_LETTER, BlockPlan, parse_plan


class Norm(nn.Module):
    """Normalise by RMSNorm with a trained gain, as `ops.norm.rms_norm` says."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = ones(width)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., width) in the dtype of x."""
        return rms_norm(x, self.weight, self.eps)


class BitLinear(nn.Module):
    """Multiply int8 tokens by a trained matrix that is rounded to ternary on every forward pass.

    Takes the three parts of a `Quantised` as separate arguments (`layer(*quantise_tokens(x))`), and owns its product:
    a matrix that several blocks share is this module held by each of them.

    Args:
        init: key of the module; the weight (N, K) is N(0, std^2).
        shape: (N, K).
        std: standard deviation at initialisation.
    """

    def __init__(self, init: InitKey, shape: tuple[int, int], std: float, rounding: Rounding) -> None:
        super().__init__()
        self.weight = init.at("weight").normal(shape, std)
        self.rounding = rounding

    def forward(self, handle: Tensor, values: Tensor, scale: Tensor | None) -> Tensor:
        """Return (..., N) in the dtype of the handle; see `ops.ternary.ternary_product`."""
        return ternary_product(Quantised(handle, values, scale), quantise_weight(self.weight, self.rounding))


class FrozenLinear(nn.Module):
    """Multiply int8 tokens by a frozen matrix of the bank: no weight gradient, nothing quantised.

    Args:
        bank: registers the matrix; held here without being a submodule, so that the model owns it once.
        key: name of the matrix in the bank; several blocks may use one key.
        gain: multiply each output channel by a trained gain of this layer's own, 1 at initialisation.
    """

    gain: nn.Parameter | None

    def __init__(self, bank: ReservoirBank, key: str, gain: bool) -> None:
        super().__init__()
        object.__setattr__(self, "bank", bank)
        self.key = key
        self.register_parameter("gain", ones(bank.spec(key).shape[0]) if gain else None)

    def forward(self, handle: Tensor, values: Tensor, scale: Tensor | None) -> Tensor:
        """Return (..., N) in the dtype of the handle; see `ops.frozen.frozen_product`."""
        return frozen_product(Quantised(handle, values, scale), *self.linear_map(), self.gain)

    def linear_map(self) -> tuple[LinearMap, float]:
        """Return what multiplies by the matrix, and its scale; the gain is not in it."""
        bank: ReservoirBank = self.__dict__["bank"]
        return bank.linear_map(self.key), bank.scale(self.key)

    def extra_repr(self) -> str:
        """Show the key of the matrix."""
        return self.key


class ProjectionBuilder:
    """Build the projections of each block as the plan says, and remember the trained ones that are shared."""

    def __init__(self, model_config: ModelConfig, reservoir_config: ReservoirConfig, bank: ReservoirBank) -> None:
        self.model_config, self.reservoir_config, self.bank = model_config, reservoir_config, bank
        self._plan = parse_plan(reservoir_config.plan)
        self.blocks: tuple[BlockPlan, ...] = self._plan.tile(model_config.num_layers)
        self._shared: dict[str, BitLinear] = {}

    def build(self, layer: int, letter: str, init: InitKey) -> BitLinear | FrozenLinear:
        """Build the projection `letter` of block `layer`; a shared and trained one is built once and returned again."""
        block = self.blocks[layer]
        key = self._plan.matrix_key(layer, letter, block)
        if letter == RESERVOIR_LETTER or letter in block.frozen_letters():
            return FrozenLinear(self.bank, key, per_letter(self.reservoir_config.gain, letter, True))
        if block.trained and letter in block.letters:
            if key not in self._shared:
                self._shared[key] = self._build_trained(letter, init)
            return self._shared[key]
        return self._build_trained(letter, init)

    def _build_trained(self, letter: str, init: InitKey) -> BitLinear:
        shape = matrix_shape(self.model_config, letter)
        return BitLinear(init, shape, matrix_std(self.model_config, letter, shape[1]), self.model_config.rounding)


class InputNorms(nn.Module):
    """Normalise and quantise the one input of several projections.

    norm=shared: one RMSNorm, one quantisation for all. norm=per_projection: the block's norm, and then each name in
    `names` has a gain and a quantisation of its own, as in the public code.
    """

    def __init__(self, config: ModelConfig, width: int, names: tuple[str, ...]) -> None:
        super().__init__()
        self.norm = Norm(width, config.norm_eps)
        self.rounding: Rounding = config.rounding
        own = config.norm == "per_projection"
        self.own = nn.ModuleList([Norm(width, config.norm_eps) for _ in names] if own else [])
        self.num_names = len(names)

    def forward(self, x: Tensor) -> list[Quantised]:
        """Return one quantised input per name; with norm=shared they are one and the same object."""
        z = self.norm(x)
        if len(self.own) == 0:
            return [quantise_tokens(z, self.rounding)] * self.num_names
        return [quantise_tokens(norm(z), self.rounding) for norm in self.own]
