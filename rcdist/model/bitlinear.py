"""Linear layers with ternary weights: trained (BitLinear) and frozen (FrozenLinear), and the norm before them."""

# Shapes: K input width, N output width, ... any leading dimensions (tokens).

from typing import Literal, TypeGuard

from torch import Tensor, nn

from rcdist.config import Architecture, ModelConfig, per_letter
from rcdist.config.plan import RESERVOIR_LETTER
from rcdist.model.init import InitKey, constant, matrix_std, ones
from rcdist.model.reservoir import ReservoirBank
from rcdist.ops.cross_entropy import linear_cross_entropy
from rcdist.ops.gated import Repeated, glu_quantise, readout_quantise
from rcdist.ops.norm import add_norm_quantise, add_norms_quantise, rms_norm
from rcdist.ops.project import Frozen, Trained, Unmultiplied, project
from rcdist.ops.quantise import Quantised, Rounding
from rcdist.ops.topology import IdentityMap, LinearMap


class Norm(nn.Module):
    """Normalise by RMSNorm with a trained gain, as `ops.norm.rms_norm` says."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = ones(width)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., width) in the dtype of x."""
        return rms_norm(x, self.weight, self.eps)


class QuantisedNorm(Norm):
    """Add to the residual stream, normalise and round, as `ops.norm.add_norm_quantise` says."""

    def __init__(self, width: int, eps: float, rounding: Rounding) -> None:
        super().__init__(width, eps)
        self.rounding = rounding

    def forward(self, x: Tensor, delta: Tensor | None = None) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Return the sum, and the three parts of its rounded norm."""
        x, z = add_norm_quantise(x, delta, self.weight, self.eps, self.rounding)
        return x, *z  # type: ignore[return-value]


class GatedNorm(nn.Module):
    """Gate one vector by another, normalise and round, as `ops.gated` says.

    Args:
        width: of both.
        eps: of the norms.
        rounding: of the result.
        kind: glu: SiLU(a) b. readout: RMSNorm(a) SiLU(b), the norm with a gain of its own.
    """

    def __init__(self, width: int, eps: float, rounding: Rounding, kind: Literal["glu", "readout"]) -> None:
        super().__init__()
        self.weight = ones(width)
        self.inner_weight = ones(width) if kind == "readout" else None
        self.eps, self.rounding = eps, rounding

    def forward(
        self, a: Tensor, b: Tensor | Repeated, a_factor: Tensor | None = None, b_factor: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Return the three parts of the rounded norm; a factor multiplies the channels of a or b first."""
        rest = (self.weight, self.eps, self.rounding, a_factor, b_factor)
        if self.inner_weight is None:
            return glu_quantise(a, b, *rest)  # type: ignore[return-value]
        assert isinstance(b, Tensor)
        return readout_quantise(a, b, self.inner_weight, *rest)  # type: ignore[return-value]


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
        """Return (..., N) in the dtype of the handle; see `ops.project.project`."""
        return project(Quantised(handle, values, scale), [self.projection()])[0]

    def projection(self) -> Trained:
        """Return the matrix as `ops.project` takes it."""
        return Trained(self.weight, self.rounding)


class Head(BitLinear):
    """Turn the last state of the residual stream into logits, or into the loss without keeping them."""

    def forward(
        self,
        handle: Tensor,
        values: Tensor,
        scale: Tensor | None,
        targets: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Return logits (..., V); or with targets the scalar of `ops.cross_entropy.linear_cross_entropy`."""
        tokens = Quantised(handle, values, scale)
        if targets is None:
            return project(tokens, [self.projection()])[0]
        return linear_cross_entropy(tokens, self.projection(), targets, weights)


class FrozenLinear(nn.Module):
    """Multiply int8 tokens by a frozen matrix of the bank: no weight gradient, nothing quantised.

    Args:
        bank: registers the matrix; held here without being a submodule, so that the model owns it once.
        key: name of the matrix in the bank; several blocks may use one key.
        gain: initial value of this layer's own trained gains, which multiply its output channels; None: it has none.
    """

    gain: nn.Parameter | None

    def __init__(self, bank: ReservoirBank, key: str, gain: float | None) -> None:
        super().__init__()
        object.__setattr__(self, "bank", bank)
        self.key = key
        self.register_parameter("gain", None if gain is None else constant(bank.spec(key).shape[0], gain))

    def forward(self, handle: Tensor, values: Tensor, scale: Tensor | None) -> Tensor:
        """Return (..., N) in the dtype of the handle; see `ops.project.project`."""
        return project(Quantised(handle, values, scale), [self.projection()])[0]

    def projection(self, gained: bool = True) -> Frozen:
        """Return the matrix as `ops.project` takes it, with its gain or without."""
        return Frozen(*self.linear_map(), self.gain if gained else None)

    def linear_map(self) -> tuple[LinearMap, float]:
        """Return what multiplies by the matrix, and its scale; the gain is not in it."""
        bank: ReservoirBank = self.__dict__["bank"]
        return bank.linear_map(self.key), bank.scale(self.key)

    def extra_repr(self) -> str:
        """Show the key of the matrix."""
        return self.key


class ProjectionBuilder:
    """Build the projections of each block as the plan says, and remember the trained ones that are shared.

    Args:
        architecture: shapes and the plan.
        bank: the frozen matrices.
        separately: modules built for it multiply inside each projection's own forward; see `project_layers`.
    """

    def __init__(self, architecture: Architecture, bank: ReservoirBank, separately: bool = False) -> None:
        self.architecture, self.bank, self.separately = architecture, bank, separately
        self._shared: dict[str, BitLinear] = {}

    def build(self, layer: int, letter: str, init: InitKey) -> BitLinear | FrozenLinear:
        """Build the projection `letter` of block `layer`; a shared and trained one is built once and returned again."""
        block = self.architecture.blocks[layer]
        key = self.architecture.plan.matrix_key(layer, letter, block)
        if letter == RESERVOIR_LETTER or letter in block.frozen_letters():
            reservoir = self.architecture.reservoir
            has_gain, value = per_letter(reservoir.gain, letter, True), per_letter(reservoir.gain_init, letter, 1.0)
            return FrozenLinear(self.bank, key, value if has_gain else None)
        if block.trained and letter in block.letters:
            if key not in self._shared:
                self._shared[key] = self._build_trained(letter, init)
            return self._shared[key]
        return self._build_trained(letter, init)

    def _build_trained(self, letter: str, init: InitKey) -> BitLinear:
        config, shape = self.architecture.model, self.architecture.shape(letter)
        return BitLinear(init, shape, matrix_std(config, letter, shape[1]), config.rounding)


Layer = BitLinear | FrozenLinear


def project_layers(
    z: list[tuple[Tensor, ...]], layers: list[Layer], *, separately: bool, gained: bool = True
) -> list[Tensor]:
    """Multiply the inputs by layers, those that share one input together.

    Args:
        z: the three parts of a quantised input for each layer; one and the same object where it is shared.
        layers: what multiplies.
        separately: call each layer's own forward: ZeRO stage 3 gathers a weight around the module that holds it.
        gained: by the gains of frozen matrices too; else what reads the product does so (see `ops.factors`).
    """
    if separately:
        return [layer(*parts) for layer, parts in zip(layers, z, strict=True)]
    projections = [
        layer.projection(gained) if isinstance(layer, FrozenLinear) else layer.projection() for layer in layers
    ]
    if any(parts is not z[0] for parts in z):
        return [project(Quantised(*parts), [p])[0] for parts, p in zip(z, projections, strict=True)]
    return project(Quantised(*z[0]), projections)


def project_repeated(z: tuple[Tensor, ...], layer: Layer, identity: FrozenLinear) -> tuple[Tensor, Repeated]:
    """Multiply an input by a layer, without its gain; its product with an identity matrix is left to what reads it."""
    tokens, scale = Quantised(*z), identity.linear_map()[1]
    projection = layer.projection(gained=False) if isinstance(layer, FrozenLinear) else layer.projection()
    handle, product = project(tokens, [Unmultiplied(), projection])
    return product, Repeated(tokens._replace(handle=handle), scale)


def repeats(layer: Layer) -> TypeGuard[FrozenLinear]:
    """Say whether a layer is a frozen one that repeats its input."""
    return isinstance(layer, FrozenLinear) and isinstance(layer.linear_map()[0], IdentityMap)


def gain_of(layer: Layer) -> Tensor | None:
    """Return the gain of a frozen layer."""
    return layer.gain if isinstance(layer, FrozenLinear) else None


class InputNorms(nn.Module):
    """Add to the residual stream, and normalise and quantise the one input of several projections.

    norm=shared: one RMSNorm, one quantisation for all. norm=per_projection: the block's norm, and then each name in
    `names` has a gain and a quantisation of its own, as in the public code.

    separately: call each norm's own forward: ZeRO stage 3 gathers a gain around the module that holds it.
    """

    def __init__(self, config: ModelConfig, width: int, names: tuple[str, ...], separately: bool = False) -> None:
        super().__init__()
        self.is_shared, self.separately = config.norm == "shared", separately
        self.eps, self.rounding = config.norm_eps, config.rounding
        self.norm = self._build(config, width) if self.is_shared else Norm(width, config.norm_eps)
        self.own = nn.ModuleList([] if self.is_shared else [self._build(config, width) for _ in names])
        self.num_names = len(names)

    @staticmethod
    def _build(config: ModelConfig, width: int) -> QuantisedNorm:
        return QuantisedNorm(width, config.norm_eps, config.rounding)

    def forward(self, x: Tensor, delta: Tensor | None = None) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
        """Return x + delta, and one quantised input per name; with norm=shared they are one and the same object."""
        if self.is_shared:
            x, *z = self.norm(x, delta)
            return x, [tuple(z)] * self.num_names
        if not self.separately:
            gains: list[Tensor] = [norm.weight for norm in self.own]  # type: ignore[misc]
            x, each = add_norms_quantise(x, delta, self.norm.weight, gains, self.eps, self.rounding)
            return x, [(z.handle, z.values, z.scale) for z in each]  # type: ignore[misc]
        x = x if delta is None else x + delta
        u = self.norm(x)
        return x, [tuple(norm(u)[1:]) for norm in self.own]
