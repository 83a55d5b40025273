"""The language model: embedding, blocks of MLGRU and GLU, ternary head; in parallel over time and step by step."""

# Shapes: B batch, T time, D model width, S state width, L layers, V vocabulary.

from contextvars import copy_context

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rcdist.config import Architecture
from rcdist.model.bitlinear import Head, InputNorms, ProjectionBuilder
from rcdist.model.glu import GLU
from rcdist.model.init import UNIT_GAIN, InitKey
from rcdist.model.mlgru import MLGRU, state_width
from rcdist.model.reservoir import ReservoirBank


class LowerBounds(nn.Module):
    """Hold the trained lower bounds of the forget gates: deeper layers keep their state longer.

    gamma = cumsum over layers of softmax over layers of the parameter, minus its first row; so layer 0 has 0.
    Qin et al. 2023, arXiv:2311.04823, section 3.2.
    """

    def __init__(self, num_layers: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_layers, width))

    def forward(self) -> Tensor:
        """Return gamma_LD in [0, 1), float32."""
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        sums_LD = self.weight.to(wide).softmax(0).cumsum(0)
        return sums_LD - sums_LD[:1]


class Block(nn.Module):
    """Add an MLGRU and then a GLU to the residual stream."""

    def __init__(self, builder: ProjectionBuilder, layer: int, init: InitKey) -> None:
        super().__init__()
        self.mlgru = MLGRU(builder, layer, init.at("mlgru"))
        self.glu = GLU(builder, layer, init.at("glu"))

    def forward(
        self,
        x_BTD: Tensor,
        delta_BTD: Tensor | None,
        gamma_D: Tensor | None,
        starts_BT: Tensor | None,
        h0_BS: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the residual stream x, what is still to be added to it, and the state after the last token.

        The last addition waits for the next norm, which does it in the same pass; see `MLGRU.forward`.
        """
        x_BTD, mixed_BTD, state_BS = self.mlgru(x_BTD, gamma_D, starts_BT, h0_BS, delta_BTD)
        x_BTD, delta_BTD = self.glu(x_BTD, mixed_BTD)
        return x_BTD, delta_BTD, state_BS


class LanguageModel(nn.Module):
    """Predict the next token with a (reservoir) MatMul-free language model (Zhu et al. 2024, arXiv:2406.02528).

    Args:
        architecture: shape and arithmetic, and which matrices are frozen and shared.
        bank: from `build_bank` or `ReservoirBank.from_packed`, of the same architecture.
        seed: with a parameter's name, decides its initial value.
        activation_checkpointing: recompute each block in the backward pass.
        separately: multiply inside each matrix's own module, as ZeRO stage 3 needs; else products of one input share
            what they have in common.

    Trained tensors have the default dtype. After `.to(torch.bfloat16)` norms, gates, the state and the loss are still
    computed in float32, and the bank stays int8. On the meta device nothing is generated. On a CPU, denormal numbers
    slow everything down: call `ops.host.prepare_host` once per process.
    """

    def __init__(
        self,
        architecture: Architecture,
        bank: ReservoirBank,
        seed: int,
        activation_checkpointing: bool = False,
        separately: bool = False,
    ) -> None:
        super().__init__()
        self.architecture, self.bank = architecture, bank
        self.activation_checkpointing = activation_checkpointing
        model_config = architecture.model
        init, width = InitKey(seed), model_config.width
        builder = ProjectionBuilder(architecture, bank, separately)
        shape = (model_config.vocab_size, width)
        embedding = init.at("embedding").at("weight").normal(shape, model_config.embedding_init_std)
        self.embedding = nn.Embedding(*shape, _weight=embedding)
        is_trained = architecture.reservoir.leak_rate == "trained"
        self.lower_bounds: nn.Module | None = LowerBounds(model_config.num_layers, width) if is_trained else None
        blocks = init.at("blocks")
        self.blocks = nn.ModuleList(Block(builder, i, blocks.at(i)) for i in range(model_config.num_layers))
        self.output = InputNorms(model_config, width, ("head",), separately)
        head_std = model_config.head_init_gain * UNIT_GAIN / width**0.5
        self.head = Head(init.at("head"), shape, head_std, model_config.rounding)

    def forward(
        self,
        tokens_BT: Tensor,
        starts_BT: Tensor | None = None,
        targets_BT: Tensor | None = None,
        weights_BT: Tensor | None = None,
    ) -> Tensor:
        """Run all positions in parallel.

        Args:
            tokens_BT: int64 token ids.
            starts_BT: bool, True where a document starts: every state is 0 before it.
            targets_BT: int64, the token that follows each position. None: return logits.
            weights_BT: weight of each position in the loss; 0 for padding. None: 1. Needs targets.

        Returns:
            logits_BTV; or, with targets, the float32 scalar sum over positions of weight * nats.
        """
        assert weights_BT is None or targets_BT is not None, "weights belong to targets"
        z, _ = self._run(tokens_BT, starts_BT, None)
        if targets_BT is None:
            logits_BTV: Tensor = self.head(*z)
            return logits_BTV
        flat = [None if part is None else part.flatten(0, 1) for part in z]
        weights_M = None if weights_BT is None else weights_BT.flatten()
        loss: Tensor = self.head(*flat, targets_BT.flatten(), weights_M)
        return loss

    def init_state(self, batch_size: int) -> Tensor:
        """Return the state before any token: float32 zeros (L, B, S) on the model's device."""
        weight, width = self.embedding.weight, state_width(self.architecture)
        wide = torch.promote_types(weight.dtype, torch.float32)
        return torch.zeros(self.architecture.model.num_layers, batch_size, width, dtype=wide, device=weight.device)

    def prefill(
        self,
        tokens_BT: Tensor,
        state_LBS: Tensor | None = None,
        starts_BT: Tensor | None = None,
        *,
        last_only: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Run all positions in parallel from a state; return logits_BTV and the state after the last one.

        last_only: only the last position's logits, (B, 1, V), as generation needs.
        """
        state_LBS = self.init_state(len(tokens_BT)) if state_LBS is None else state_LBS
        z, state_LBS = self._run(tokens_BT, starts_BT, state_LBS)
        if last_only:
            z = tuple(part if part is None else part[:, -1:].contiguous() for part in z)
        return self.head(*z), state_LBS

    def step(self, token_B: Tensor, state_LBS: Tensor) -> tuple[Tensor, Tensor]:
        """Run one position; return logits_BV and the next state. Cost and memory do not grow with the position."""
        z, state_LBS = self._run(token_B.unsqueeze(1), None, state_LBS)
        return self.head(*z).squeeze(1), state_LBS

    def _run(
        self, tokens_BT: Tensor, starts_BT: Tensor | None, state_LBS: Tensor | None
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return the quantised input of the head, and the states after the last token."""
        x_BTD, delta_BTD = self.embedding(tokens_BT), None
        recompute = self.activation_checkpointing and torch.is_grad_enabled()
        states = []
        bounds = [None] * len(self.blocks) if self.lower_bounds is None else self.lower_bounds().unbind(0)
        for i, (block, gamma_D) in enumerate(zip(self.blocks, bounds, strict=True)):
            arguments = (x_BTD, delta_BTD, gamma_D, starts_BT, None if state_LBS is None else state_LBS[i])
            if recompute:
                # On a GPU it is computed again in another thread, which must choose as this one does.
                run = copy_context().run
                done = checkpoint(run, block, *arguments, use_reentrant=False, preserve_rng_state=False)
            else:
                done = block(*arguments)
            x_BTD, delta_BTD, state_BS = done
            states.append(state_BS)
        _, (z,) = self.output(x_BTD, delta_BTD)
        return z, torch.stack(states)
