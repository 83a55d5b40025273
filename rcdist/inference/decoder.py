"""Step a model for several sequences at a time: as a CUDA graph on a GPU, from a tape on a CPU."""

# Shapes: B sequences, T tokens, V vocabulary, L layers, S state.

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from rcdist.model.lm import LanguageModel
from rcdist.ops.replay import Replay
from rcdist.ops.tape import Tape
from rcdist.ops.weights import WeightsQuantisedOnce

PREFILL_TOKENS = 2048
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
        self._rounded = WeightsQuantisedOnce()
        self._records = _Records(device, [self.token_B, self.state_LBS, self.logits_BV])
        self._places: dict[int, Tensor] = {}

    @property
    def is_recorded(self) -> bool:
        """Say whether steps are run from a record."""
        return self._records.has("step")

    @torch.no_grad()
    def prefill(self, tokens_BT: Tensor, size: int = PREFILL_TOKENS) -> None:
        """Read prompts of one length from the zero state; `size` tokens at a time bound the memory.

        Args:
            tokens_BT: at least one token of each sequence.
            size: tokens of each sequence at a time.
        """
        assert tokens_BT.shape[1] > 0, "a prompt has at least one token"
        self.state_LBS.zero_()
        for part_BT in tokens_BT.split(size, dim=1):
            self.read(part_BT)

    @torch.no_grad()
    def read(self, tokens_BT: Tensor) -> None:
        """Go on from the state by the next tokens of a prompt, at least one of each sequence, at once."""
        with self._rounded:
            logits_BTV, state_LBS = self._model.prefill(tokens_BT, self.state_LBS, last_only=True)
        self.state_LBS.copy_(state_LBS)
        self.logits_BV.copy_(logits_BTV[:, -1])

    @torch.no_grad()
    def read_recorded(self, tokens_BT: Tensor) -> None:
        """Do what `read` does, for each number of tokens from a record, which keeps all it computes on the way."""
        size = tokens_BT.shape[1]
        place = self._places.get(size)
        if place is None:
            place = self._places[size] = self._records.add(torch.zeros_like(tokens_BT))
        place.copy_(tokens_BT)
        self._records.run(size, lambda: self.read(place))

    @torch.no_grad()
    def step(self) -> None:
        """Advance every sequence by its token."""
        with self._rounded:
            self._records.run("step", self._work)

    def _work(self) -> None:
        logits_BV, state_LBS = self._model.step(self.token_B, self.state_LBS)
        self.logits_BV.copy_(logits_BV)
        self.state_LBS.copy_(state_LBS)


class _Records:
    """Do pieces of work, each from its second time on from a record: a CUDA graph on a GPU, a tape on a CPU."""

    def __init__(self, device: torch.device, changing: list[Tensor]) -> None:
        self._replay = None if device.type == "cpu" else Replay(device)
        self._changing = changing
        self._tapes: dict[Hashable, Tape | None] = {}

    def add(self, tensor: Tensor) -> Tensor:
        """Take in a tensor that changes between runs, and return it."""
        self._changing = [*self._changing, tensor]
        return tensor

    def has(self, key: Hashable) -> bool:
        """Say whether a piece of work is run from a record."""
        if self._replay is not None:
            return self._replay.has(key)
        tape = self._tapes.get(key)
        return tape is not None and tape.is_complete

    def run(self, key: Hashable, work: Callable[[], object]) -> None:
        """Do a piece of work on tensors that stay where they are."""
        if self._replay is not None:
            self._replay.run(key, work)
        elif key not in self._tapes:
            self._tapes[key] = None  # the first time rounds weights and compiles
            work()
        elif (tape := self._tapes[key]) is not None:
            tape.run()
        else:
            self._tapes[key] = Tape(work, self._changing)
