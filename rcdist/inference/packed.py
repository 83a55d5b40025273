"""A model for inference alone: ternary matrices at two bits a weight, nothing of what training needs."""

# Shapes: M tokens, K input width, N output width, V vocabulary.

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rcdist.model.bitlinear import BitLinear, FrozenLinear, Head
from rcdist.model.lm import LanguageModel, LowerBounds
from rcdist.model.reservoir import ReservoirBank, pack_ternary, unpack_ternary
from rcdist.ops.topology import DenseMap, LinearMap
from rcdist.ops.two_bits import TwoBitMap, TwoBitPlanes, compact_map
from rcdist.ops.weights import quantised_weight

_LOGITS_AT_ONCE = 2**22


class PackedLinear(FrozenLinear):
    """Multiply int8 tokens by a ternary matrix that does not change any more, trained or frozen.

    Args:
        matrix: what multiplies, unscaled.
        scale: multiplies it.
        gain: of each output channel, as of the frozen layer that this one stands for. None: 1.
    """

    def __init__(self, matrix: LinearMap, scale: float, gain: nn.Parameter | None = None) -> None:
        nn.Module.__init__(self)
        self.matrix, self.scale, self.key = matrix, scale, ""
        self.register_parameter("gain", gain)

    def linear_map(self) -> tuple[LinearMap, float]:
        """See FrozenLinear.linear_map."""
        return self.matrix, self.scale

    def extra_repr(self) -> str:
        """Show the shape."""
        return f"{self.matrix.shape[0]} x {self.matrix.shape[1]}"


class PackedHead(PackedLinear):
    """Turn the last state of the residual stream into logits, or into the loss; see `model.bitlinear.Head`."""

    def forward(
        self,
        handle: Tensor,
        values: Tensor,
        scale: Tensor | None,
        targets: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Return logits (..., V); or with targets the float32 sum of weight * nats, of some tokens at a time."""
        if targets is None:
            return super().forward(handle, values, scale)
        total = torch.zeros((), device=targets.device)
        count = max(_LOGITS_AT_ONCE // self.matrix.shape[0], 1)
        for first in range(0, len(targets), count):
            part = slice(first, first + count)
            logits_MV = super().forward(handle[part], values[part], None if scale is None else scale[part])
            nats_M = F.cross_entropy(logits_MV.float(), targets[part], reduction="none")
            total += (nats_M if weights is None else nats_M * weights[part]).sum()
        return total


class FixedBounds(nn.Module):
    """Hold the lower bounds of the forget gates as they are at the end of training; see `model.lm.LowerBounds`."""

    def __init__(self, gamma_LD: Tensor) -> None:
        super().__init__()
        self.register_buffer("gamma_LD", gamma_LD, persistent=False)

    def forward(self) -> Tensor:
        """Return gamma_LD in [0, 1), float32."""
        gamma_LD: Tensor = self.gamma_LD  # type: ignore[assignment]
        return gamma_LD


def pack_model(model: LanguageModel) -> LanguageModel:
    """Replace the ternary matrices of a trained model by packed ones, in place, and return it.

    Latent weights are dropped; a matrix that several blocks share is packed once. Structured frozen matrices
    (hadamard, block, ring, identity) stay as they are: they are small. Only inference works afterwards.
    """
    made: dict[int, nn.Module] = {}
    for layer in model.modules():
        if isinstance(layer, BitLinear):
            rounded = quantised_weight(layer.weight)
            assert rounded.scale is not None
            made[id(layer)] = _packed_layer(layer, rounded.values, float(rounded.scale))
    _replace(model, made)
    return _finish(model)


def packed_tensors(model: LanguageModel) -> dict[str, Tensor]:
    """Return the tensors of a trained model's packed file, by name.

    A trained matrix is `<layer>.codes` (uint8, four codes a byte in the order of the rows) and `<layer>.scale`; other
    parameters are as they are. Frozen matrices are not among them: they are made again from their specs.
    """
    tensors, matrices = {}, set()
    for name, layer in model.named_modules():
        if isinstance(layer, BitLinear):
            rounded = quantised_weight(layer.weight)
            assert rounded.scale is not None
            tensors[f"{name}.codes"] = torch.from_numpy(pack_ternary(rounded.values.cpu().numpy()))
            tensors[f"{name}.scale"] = rounded.scale.detach().cpu().clone()
            matrices.add(id(layer.weight))
    for name, parameter in model.named_parameters():
        if id(parameter) not in matrices:
            tensors[name] = parameter.detach().cpu().contiguous()
    return tensors


def fill_packed(model: LanguageModel, bank: ReservoirBank, tensors: dict[str, Tensor], device: torch.device) -> None:
    """Turn a model on the meta device into a packed one.

    Args:
        model: of the right architecture; holds nothing yet.
        bank: its frozen matrices.
        tensors: from `packed_tensors`; taken over.
        device: where the model is to be.

    Raises:
        KeyError, ValueError, RuntimeError: a tensor is missing, left over or of another shape.
    """
    made: dict[int, nn.Module] = {}
    for name, layer in list(model.named_modules()):
        if isinstance(layer, BitLinear):
            codes, scale = tensors.pop(f"{name}.codes"), tensors.pop(f"{name}.scale")
            made[id(layer)] = _packed_layer(layer, _unpack(codes, layer.weight.shape).to(device), float(scale))
        elif isinstance(layer, FrozenLinear):
            object.__setattr__(layer, "bank", bank)
    model.bank = bank.to(device)
    _replace(model, made)
    # Copies: as long as one tensor lies in the file's mapping, all of that stays in memory, codes included.
    kept = {name: tensor.to(device, copy=True) for name, tensor in tensors.items()}
    model.load_state_dict(kept, strict=True, assign=True)
    _finish(model)


def _unpack(codes: Tensor, shape: torch.Size) -> Tensor:
    if codes.shape != (-(-shape.numel() // 4),) or codes.dtype != torch.uint8:
        raise ValueError(f"{tuple(codes.shape)} bytes of codes for a matrix of {tuple(shape)}")
    return torch.from_numpy(unpack_ternary(codes.numpy(), tuple(shape)))


def _packed_layer(layer: BitLinear, ternary_NK: Tensor, scale: float) -> PackedLinear:
    return (PackedHead if isinstance(layer, Head) else PackedLinear)(compact_map(ternary_NK), scale)


def _replace(model: LanguageModel, made: dict[int, nn.Module]) -> None:
    """Put modules in the place of others, by their identity, wherever these are held."""
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if id(layer) in made:
                setattr(parent, name, made[id(layer)])


def _finish(model: LanguageModel) -> LanguageModel:
    """Pack dense frozen matrices too, each once, and drop their tables; what is computed of weights alone is kept."""
    if isinstance(model.lower_bounds, LowerBounds):
        with torch.no_grad():
            model.lower_bounds = FixedBounds(model.lower_bounds())
    dense = {spec.key for spec in model.bank.specs if spec.topology == "dense"}
    maps = {key: compact_map(model.bank.matrix(key)) for key in sorted(dense)}
    scales = {key: model.bank.scale(key) for key in dense}
    model.bank = rest = model.bank.without(dense)
    made: dict[int, nn.Module] = {}
    for layer in model.modules():
        if isinstance(layer, FrozenLinear) and layer.key in dense:
            made[id(layer)] = PackedLinear(maps[layer.key], scales[layer.key], layer.gain)
        elif isinstance(layer, FrozenLinear):
            object.__setattr__(layer, "bank", rest)
    _replace(model, made)
    return model.eval().requires_grad_(False)


def resident_bytes(model: LanguageModel) -> int:
    """Return the bytes of all that a packed model keeps: matrices, embedding, vectors."""
    tensors = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    for layer in model.modules():
        if isinstance(layer, PackedLinear):
            assert isinstance(layer.matrix, TwoBitMap | TwoBitPlanes | DenseMap)
            held = layer.matrix.ternary_NK if isinstance(layer.matrix, DenseMap) else layer.matrix.packed
            tensors[id(held)] = held
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
