"""A (reservoir) MatMul-free language model for transformers, in plain PyTorch, for inference."""

# Zhu et al. 2024, "Scalable MatMul-free Language Modeling", arXiv:2406.02528; BitNet b1.58: arXiv:2402.17764.
# Shapes: B sequences, T tokens, K inputs, N outputs, D width, V vocabulary.

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GenerationMixin, PreTrainedModel
from transformers.utils import ModelOutput

from .configuration_rcdist import RcdistConfig


@dataclass
class RcdistOutput(ModelOutput):
    """Hold what a forward pass returns.

    Attributes:
        loss: mean nats per target, with labels.
        logits: (B, T, V).
        state: float32 (L, B, S) after the last token: pass it back to go on from there.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    state: Tensor | None = None


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """Return x / rms(x) * gain, computed in float32."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps) * gain.float()).to(x.dtype)


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round each token to 127 steps of its largest value; return the codes as float32 and their scale."""
    largest = x.abs().amax(-1, keepdim=True).float().clamp(min=1e-5)
    return (x.float() * (127.0 / largest)).round(), largest / 127.0


class Matrix(nn.Module):
    """A fixed matrix: a table of -1, 0, 1 (ternary) or of numbers (dense), or sign flips around Walsh-Hadamard
    transforms (hadamard); and its scale."""

    def __init__(self, kind: str, shape: list[int]) -> None:
        super().__init__()
        self.kind, self.shape = kind, tuple(shape)
        self.register_buffer("scale", torch.ones(()))
        if kind == "ternary":
            self.register_buffer("codes", torch.zeros(shape, dtype=torch.int8))
        elif kind == "dense":
            self.register_buffer("table", torch.zeros(shape))
        else:
            width = min(shape)
            self.register_buffer("signs", torch.ones(1 + -(-max(shape) // width), width, dtype=torch.int8))

    def times(self, x: Tensor) -> Tensor:
        """Return x A^T, unscaled; codes up to 127 are summed exactly in float32."""
        if self.kind == "ternary":
            return x @ self.codes.to(x.dtype).t()
        if self.kind == "dense":
            return x @ self.table.to(x.dtype).t()
        outputs, inputs = self.shape
        first, rest = self.signs[0].to(x.dtype), self.signs[1:].to(x.dtype)
        if outputs >= inputs:
            mixed = _mix(_transform(x * first), back=False)
            return _transform(mixed.unsqueeze(-2) * rest).flatten(-2)[..., :outputs]
        padded = F.pad(x, (0, len(rest) * outputs - inputs)).unflatten(-1, (len(rest), outputs))
        return _transform(_mix((_transform(padded) * rest).sum(-2), back=True)) * first

    def forward(self, codes: Tensor, scale: Tensor, dtype: torch.dtype, gain: Tensor | None = None) -> Tensor:
        """Return (codes A^T) * scales, with the gain of each output."""
        columns = self.scale if gain is None else gain.float() * self.scale
        return (self.times(codes) * (scale * columns)).to(dtype)


def _run_length(width: int) -> int:
    return width & -width


def _transform(x: Tensor) -> Tensor:
    """Apply the orthonormal Walsh-Hadamard transform to each run of channels, as long as the width allows."""
    size = _run_length(x.shape[-1])
    y = x.unflatten(-1, (-1, size))
    half = 1
    while half < size:
        pairs = y.unflatten(-1, (-1, 2, half))
        a, b = pairs[..., 0, :], pairs[..., 1, :]
        y = torch.stack([a + b, a - b], -2).flatten(-3)
        half *= 2
    return y.flatten(-2) / math.sqrt(size)


def _mix(x: Tensor, back: bool) -> Tensor:
    """Move channel k of each run on by k runs, or back."""
    width = x.shape[-1]
    size = _run_length(width)
    if size == width:
        return x
    runs, channel = width // size, torch.arange(width, device=x.device)
    run, k = channel // size, channel % size
    return x[..., ((run + k) if back else (run - k)) % runs * size + k]


class Block(nn.Module):
    """Mix tokens by a gated recurrence, then channels by a gated linear unit."""

    def __init__(self, config: RcdistConfig, layer: int) -> None:
        super().__init__()
        width, inner, letters = config.hidden_size, config.intermediate_size, config.layers[layer]
        self.config, self.letters = config, letters
        self.placement = config.placement if "r" in letters else None
        self.names = [name for name in "fcg" if name in letters]
        self.names += ["r"] if self.placement in ("reset_gate", "token_shift") else []
        self.mixer_norm, self.glu_norm = (nn.Parameter(torch.ones(width)) for _ in range(2))
        own = config.norm == "per_projection"
        self.own_norms = nn.ParameterDict({name: torch.ones(width) for name in self.names} if own else {})
        self.own_glu_norm = nn.Parameter(torch.ones(width)) if own else None
        self.inner_norm = nn.Parameter(torch.ones(width)) if config.output_gate != "none" else None
        self.o_norm, self.down_norm = nn.Parameter(torch.ones(width)), nn.Parameter(torch.ones(inner))
        self.g_bias = nn.Parameter(torch.zeros(width)) if config.output_gate == "tied" else None
        self.r_norm = nn.Parameter(torch.ones(width)) if self.placement == "post_scan" else None
        sizes = {"G": inner, "U": inner}
        gained = [letter for letter in letters if f"{layer}.{letter}" in config.gains]
        self.gains = nn.ParameterDict({letter: torch.ones(sizes.get(letter, width)) for letter in gained})

    def _multiply(self, matrices: nn.ModuleDict, letter: str, z: tuple[Tensor, Tensor], dtype: torch.dtype) -> Tensor:
        gain = self.gains.get(letter)
        return matrices[self.letters[letter]](*z, dtype, gain)

    def forward(
        self, x: Tensor, matrices: nn.ModuleDict, gamma: Tensor | None, state: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the residual stream (B, T, D) and the state (B, S) after the last token."""
        eps, dtype, width = self.config.rms_norm_eps, x.dtype, x.shape[-1]
        u = rms_norm(x, self.mixer_norm, eps)
        shared = None if self.own_norms else quantise(u)
        pre = {}
        for name in self.names:
            z = shared if shared is not None else quantise(rms_norm(u, self.own_norms[name], eps))
            pre[name] = self._multiply(matrices, name, z, dtype)
        after = state.clone()
        if self.placement == "token_shift":
            pushed = pre["r"] if mask is None else pre["r"] * mask.unsqueeze(-1)
            before = state[:, width:].to(dtype).unsqueeze(1)
            pre["c"] = pre["c"] + torch.cat([before, pushed[:, :-1]], 1)
            after[:, width:] = pushed[:, -1].float()
        h, after[:, :width] = self._recur(pre, matrices, gamma, state[:, :width], mask)
        if self.placement == "post_scan":
            read = self._multiply(matrices, "r", quantise(rms_norm(h, self.r_norm, eps)), dtype)
            h = h + read if self.config.combine == "add" else read
        x = x + self._multiply(matrices, "o", quantise(self._read_out(h, pre)), dtype)
        u = rms_norm(x, self.glu_norm, eps)
        z = quantise(u if self.own_glu_norm is None else rms_norm(u, self.own_glu_norm, eps))
        inner = F.silu(self._multiply(matrices, "G", z, dtype)) * self._multiply(matrices, "U", z, dtype)
        return x + self._multiply(matrices, "D", quantise(rms_norm(inner, self.down_norm, eps)), dtype), after

    def _recur(
        self, pre: dict[str, Tensor], matrices: nn.ModuleDict, gamma: Tensor | None, h: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        c = pre["c"].float()
        if gamma is None:
            f = torch.full_like(c, 1.0 - self.config.leak_rate)
        else:
            f = torch.lerp(pre["f"].float().sigmoid(), torch.ones_like(gamma), gamma)
        reset = pre["r"].float().sigmoid() if self.placement == "reset_gate" else None
        states = []
        for t in range(c.shape[1]):
            u = c[:, t]
            if reset is not None:
                u = u + reset[:, t] * h
            elif self.placement == "recurrent":
                matrix = matrices[self.letters["r"]]
                weight = matrix.scale * (self.gains["r"].float() if "r" in self.gains else 1.0)
                u = u + matrix.times(h) * weight
            h = f[:, t] * h + (1 - f[:, t]) * F.silu(u)
            if mask is not None:
                h = h * mask[:, t, None]
            states.append(h)
        return torch.stack(states, 1).to(pre["c"].dtype), h

    def _read_out(self, h: Tensor, pre: dict[str, Tensor]) -> Tensor:
        eps, by_gate = self.config.rms_norm_eps, self.config.readout_norm == "gate"
        if self.config.output_gate == "none":
            return rms_norm(F.silu(h) if by_gate else h, self.o_norm, eps)
        gate = pre["g"] if self.g_bias is None else pre["f"] + self.g_bias
        a, b = (gate, h) if by_gate else (h, gate)
        return rms_norm(rms_norm(a, self.inner_norm, eps) * F.silu(b), self.o_norm, eps)


class RcdistForCausalLM(PreTrainedModel, GenerationMixin):
    """Predict the next token; `generate` keeps a state of fixed size in place of keys and values."""

    config_class = RcdistConfig
    _is_stateful = True
    _no_split_modules = ["Block"]

    def __init__(self, config: RcdistConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.embedding = nn.Embedding(config.vocab_size, width)
        self.lower_bounds = nn.Parameter(torch.zeros(config.num_hidden_layers, width))
        self.matrices = nn.ModuleDict({name: Matrix(**about) for name, about in config.matrices.items()})
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.head_norm = nn.Parameter(torch.ones(width))
        self.own_head_norm = nn.Parameter(torch.ones(width)) if config.norm == "per_projection" else None
        self.head = Matrix("ternary", [config.vocab_size, width])
        self.post_init()

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def _init_weights(self, module: nn.Module) -> None:
        """Leave everything as it is: a model is only ever loaded."""

    def get_input_embeddings(self) -> nn.Module:
        """Return the embedding."""
        return self.embedding

    def init_state(self, batch_size: int) -> Tensor:
        """Return the state before any token."""
        width = self.config.hidden_size * (2 if self.config.placement == "token_shift" else 1)
        return torch.zeros(len(self.blocks), batch_size, width, device=self.embedding.weight.device)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        state: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int = 0,
        **_: Any,
    ) -> RcdistOutput:
        """Return logits and the state after the last token.

        Args:
            input_ids: (B, T).
            attention_mask: (B, T) or longer, its last T places count; 0 for padding, which leaves no state behind.
            state: of the tokens before. None: there are none.
            labels: (B, T), -100 for places that do not count; the loss is of each token after the one before.
            logits_to_keep: of the last places only; 0: of all.
        """
        x = self.embedding(input_ids)
        state = self.init_state(len(input_ids)) if state is None else state
        mask = None if attention_mask is None else attention_mask[:, -input_ids.shape[1] :]
        mask = None if mask is None or bool((mask != 0).all()) else (mask != 0).to(x.dtype)
        sums = self.lower_bounds.float().softmax(0).cumsum(0)
        bounds = sums - sums[:1]
        after = []
        for i, block in enumerate(self.blocks):
            gamma = bounds[i] if self.config.leak_rate is None else None
            x, last = block(x, self.matrices, gamma, state[i], mask)
            after.append(last)
        u = rms_norm(x[:, -logits_to_keep:] if logits_to_keep else x, self.head_norm, self.config.rms_norm_eps)
        u = u if self.own_head_norm is None else rms_norm(u, self.own_head_norm, self.config.rms_norm_eps)
        logits = self.head(*quantise(u), x.dtype)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        return RcdistOutput(loss=loss, logits=logits, state=torch.stack(after) if after else state)

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, state: Tensor | None = None, attention_mask: Tensor | None = None, **_: Any
    ) -> dict[str, Any]:
        """Give `forward` the whole prompt once, then one token at a time with the state."""
        if state is not None:
            return {"input_ids": input_ids[:, -1:], "state": state}
        return {"input_ids": input_ids, "attention_mask": attention_mask, "logits_to_keep": 1}

    def _update_model_kwargs_for_generation(
        self, outputs: RcdistOutput, model_kwargs: dict[str, Any], *_: Any, **__: Any
    ) -> dict[str, Any]:
        return model_kwargs | {"state": outputs.state}
