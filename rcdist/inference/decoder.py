"""Step a model for several sequences at a time: as a CUDA graph on a GPU, from a tape on a CPU."""

# Shapes: B sequences, T tokens, V vocabulary, L layers, S state.

import torch
from torch import Tensor

from rcdist.model.lm import LanguageModel
from rcdist.ops.replay import Replay
from rcdist.ops.tape import Tape
from rcdist.ops.weights import WeightsQuantisedOnce

_PREFILL_TOKENS = 2048
"""Of a prompt at a time: memory does not grow with its length."""


class Decoder:
    """Advance B sequences by one token each; what a step costs does not depend on how many came before.

    Call `prefill`, or fill `state_LBS` in place; then fill `token_B`, call `step`, and read `logits_BV`. The first step
    computes as ever, the second is recorded, and from the third on the record is run.

    Args:
        model: in evaluation mode; its weights must not change.
        batch_size: B.

    Attributes:
        token_B: int64, the newest token of each sequence.
        state_LBS: float32, the state of each.
        logits_BV: of the token after.
    """

    def __init__(self, model: LanguageModel, batch_size: int) -> None:
        device = model.embedding.weight.device
        self._model = model
        self.token_B = torch.zeros(batch_size, dtype=torch.int64, device=device)
        self.state_LBS = model.init_state(batch_size)
        vocab_size, dtype = model.architecture.model.vocab_size, model.embedding.weight.dtype
        self.logits_BV = torch.zeros(batch_size, vocab_size, dtype=dtype, device=device)
        self._rounded, self._replay = WeightsQuantisedOnce(), Replay(device)
        self._tape: Tape | None = None
        self._is_on_cpu, self._num_steps = device.type == "cpu", 0

    @property
    def is_recorded(self) -> bool:
        """Say whether steps are run from a record."""
        if not self._is_on_cpu:
            return self._replay.num_graphs > 0
        return self._tape is not None and self._tape.is_complete

    @torch.no_grad()
    def prefill(self, tokens_BT: Tensor, size: int = _PREFILL_TOKENS) -> None:
        """Read prompts of one length from the zero state; `size` tokens at a time bound the memory.

        Args:
            tokens_BT: at least one token of each sequence.
            size: tokens of each sequence at a time.
        """
        assert tokens_BT.shape[1] > 0, "a prompt has at least one token"
        self.state_LBS.zero_()
        with self._rounded:
            for part_BT in tokens_BT.split(size, dim=1):
                logits_BTV, state_LBS = self._model.prefill(part_BT, self.state_LBS, last_only=True)
                self.state_LBS.copy_(state_LBS)
        self.logits_BV.copy_(logits_BTV[:, -1])

    @torch.no_grad()
    def step(self) -> None:
        """Advance every sequence by its token."""
        self._num_steps += 1
        with self._rounded:
            if not self._is_on_cpu:
                self._replay.run("step", self._work)
            elif self._tape is not None:
                self._tape.run()
            elif self._num_steps == 2:  # the first one rounds weights and compiles
                self._tape = Tape(self._work, [self.token_B, self.state_LBS, self.logits_BV])
            else:
                self._work()

    def _work(self) -> None:
        logits_BV, state_LBS = self._model.step(self.token_B, self.state_LBS)
        self.logits_BV.copy_(logits_BV)
        self.state_LBS.copy_(state_LBS)
