"""Continue many texts at a time: each has a slot of the state, joins at any step and leaves when it is done."""

# Shapes: B sequences, V vocabulary, L layers, S state.

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from rcdist.data.tokenizer import Tokenizer
from rcdist.inference.decoder import PREFILL_TOKENS, Decoder
from rcdist.inference.generate import Sampling, choose, unknown_mask
from rcdist.model.lm import LanguageModel

Reason = Literal["stop", "length", "error"]
PUBLISHING_S = 0.02
"""News wait as long for those of more turns: whoever reads them costs more than a step of a small model."""
_RECORDED_PROMPT = 64
"""Tokens of prompts that are read from records."""
_RECORDED_PARTS = (16, 8, 4, 2, 1)
"""Tokens that there is a record for; together they make any length."""
_WARM_UP_STEPS = 3
"""The first computes as ever, the second is recorded, the third runs the record."""


@dataclass(eq=False)
class Text:
    """Hold a text that is continued.

    Attributes:
        prompt_ids: at least one id; the first should be the document boundary.
        max_tokens: most ids to make.
        sampling: how each is chosen.
    """

    prompt_ids: Sequence[int]
    max_tokens: int
    sampling: Sampling
    num_made: int = 0
    is_cancelled: bool = False
    generator: torch.Generator = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.generator = torch.Generator("cpu").manual_seed(self.sampling.seed)


@dataclass(frozen=True)
class News:
    """Tell what has become of a text.

    Attributes:
        text: the text.
        token: its next id. None: there is none.
        reason: why it ends. None: it goes on.
    """

    text: Text
    token: int | None
    reason: Reason | None


class Batcher:
    """Continue texts, as many at a time as there are slots; each as it would be continued alone.

    The state of a text has a fixed size, so a slot is a row of it: nothing is paged, moved or evicted, and no text
    makes another one wait longer than for one part of its prompt. Work goes on in the thread that calls `run`;
    everything else may be called from any thread.

    Args:
        model: in evaluation mode; its weights must not change.
        tokenizer: of the model.
        publish: is called from the working thread with the news of some turns, in order.
        max_running: texts that are continued at a time.
        max_waiting: texts that may wait for a slot.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        publish: Callable[[list[News]], None],
        *,
        max_running: int,
        max_waiting: int,
    ) -> None:
        sizes = [2**i for i in range(max_running.bit_length()) if 2**i < max_running]
        self._decoders = [Decoder(model, size) for size in (*sizes, max_running)]
        self._decoder = self._decoders[0]
        self._reader, self._num_read = Decoder(model, 1), 0
        self._running: list[Text] = []
        self._news: list[News] = []
        self._next_publication = 0.0
        self._waiting: deque[Text] = deque()
        self._reading: Text | None = None
        self._boundary = tokenizer.eod_id
        vocab_size = model.architecture.model.vocab_size
        unknown_V = unknown_mask(vocab_size, tokenizer.known_ids)
        self._unknown_V = unknown_V.to(model.embedding.weight.device) if unknown_V.any() else None
        self._publish, self._max_running, self._max_waiting = publish, max_running, max_waiting
        self._changed = threading.Condition()
        self._is_closed = False
        self.is_alive = True
        """False after an error in `run`, and after `close`."""

    @property
    def num_running(self) -> int:
        """Return how many texts have a slot."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Return how many texts have none yet."""
        return len(self._waiting) + (self._reading is not None)

    def has_room(self, count: int) -> bool:
        """Say whether so many texts more can be submitted."""
        return self.num_running + self.num_waiting + count <= self._max_running + self._max_waiting

    def submit(self, texts: Sequence[Text]) -> bool:
        """Take texts in, all of them or, if there is no room or the batcher is not alive, none; say which."""
        with self._changed:
            if not self.is_alive or not self.has_room(len(texts)):
                return False
            self._waiting.extend(texts)
            self._changed.notify()
        return True

    def cancel(self, text: Text) -> None:
        """Stop continuing a text; it has no more news, except of the turn that is going on."""
        text.is_cancelled = True

    def close(self) -> None:
        """Let `run` return; texts that are not done end with an error."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()

    @torch.no_grad()
    def warm_up(self) -> None:
        """Compile, and record the steps of every batch size and the parts of short prompts."""
        for _ in range(_WARM_UP_STEPS):
            for size in _RECORDED_PARTS:
                self._reader.read_recorded(self._reader.token_B[:, None].expand(1, size))
            for decoder in self._decoders:
                decoder.step()

    @torch.no_grad()
    def run(self) -> None:
        """Work until `close`.

        Raises:
            Exception: whatever the model raises; every text has ended with an error before.
        """
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._is_closed or self.num_running + self.num_waiting > 0)
                if self._is_closed:
                    return
                self.advance()
        finally:
            with self._changed:
                self.is_alive = False
                reading = [] if self._reading is None else [self._reading]
                left = [*self._running, *reading, *self._waiting]
                self._running, self._reading = [], None
                self._waiting.clear()
            self._publish([*self._news, *(News(text, None, "error") for text in left)])

    def advance(self) -> None:
        """Do one turn: drop what is cancelled, read one part of the prompts that wait, make one token of each text."""
        for row in reversed(range(len(self._running))):
            if self._running[row].is_cancelled:
                self._remove(row)
        self._news += self._read_prompts()
        self._news += self._step()
        now = time.monotonic()
        if self._news and (now >= self._next_publication or not self._running):
            self._publish(self._news)
            self._news, self._next_publication = [], now + PUBLISHING_S

    def _read_prompts(self) -> list[News]:
        """Read prompts while there are slots, PREFILL_TOKENS together: that long all others wait."""
        news, budget = [], PREFILL_TOKENS
        while budget > 0 and self._next_prompt() is not None:
            text = self._reading
            assert text is not None
            budget -= self._read_part(text)
            if self._num_read == len(text.prompt_ids):
                self._reading = None
                first = self._next_news([text], self._reader.logits_BV)[0]
                news.append(first)
                if first.reason is None:
                    self._add(text, first.token)
        return news

    def _read_part(self, text: Text) -> int:
        """Read on in a prompt, and return by how many tokens; a short one from records, or it is all Python's time."""
        size, is_recorded = PREFILL_TOKENS, len(text.prompt_ids) <= _RECORDED_PROMPT
        if is_recorded:
            size = next(size for size in _RECORDED_PARTS if size <= len(text.prompt_ids) - self._num_read)
        part = text.prompt_ids[self._num_read : self._num_read + size]
        tokens_BT = torch.tensor([list(part)], device=self._reader.token_B.device)
        if is_recorded:
            self._reader.read_recorded(tokens_BT)
        else:
            self._reader.read(tokens_BT)
        self._num_read += len(part)
        return len(part)

    def _next_prompt(self) -> Text | None:
        """Return the text whose prompt is read next, if there is a slot for it."""
        if self._reading is not None and self._reading.is_cancelled:
            self._reading = None
        while self._reading is None and self._waiting and len(self._running) < self._max_running:
            text = self._waiting.popleft()
            if not text.is_cancelled:
                self._reading, self._num_read = text, 0
                self._reader.state_LBS.zero_()
        return self._reading

    def _step(self) -> list[News]:
        count = len(self._running)
        if count == 0:
            return []
        self._decoder.step()
        news = self._next_news(self._running, self._decoder.logits_BV[:count])
        tokens_B = torch.tensor([0 if one.token is None else one.token for one in news])
        self._decoder.token_B[:count].copy_(tokens_B)
        for row in reversed(range(count)):
            if news[row].reason is not None:
                self._remove(row)
        return news

    def _next_news(self, texts: Sequence[Text], logits_BV: Tensor) -> list[News]:
        """Choose the next token of each text."""
        if self._unknown_V is not None:
            logits_BV = logits_BV.masked_fill(self._unknown_V, -torch.inf)
        likeliest = logits_BV.argmax(-1).tolist()
        news = []
        for row, text in enumerate(texts):
            token = likeliest[row]
            if text.sampling.temperature > 0.0:
                token = choose(logits_BV[row].double().cpu(), text.sampling, text.generator)
            if token == self._boundary:
                news.append(News(text, None, "stop"))
                continue
            text.num_made += 1
            news.append(News(text, token, "length" if text.num_made == text.max_tokens else None))
        return news

    def _add(self, text: Text, token: int | None) -> None:
        """Give a text whose prompt has been read the next row."""
        assert token is not None
        row = len(self._running)
        self._running.append(text)
        self._fit()
        self._decoder.state_LBS[:, row].copy_(self._reader.state_LBS[:, 0])
        self._decoder.token_B[row] = token

    def _remove(self, row: int) -> None:
        """Take a row out; the last one moves into its place."""
        last = len(self._running) - 1
        if row != last:
            self._running[row] = self._running[last]
            self._decoder.state_LBS[:, row].copy_(self._decoder.state_LBS[:, last])
            self._decoder.token_B[row] = self._decoder.token_B[last]
        self._running.pop()
        self._fit()

    def _fit(self) -> None:
        """Go on with the smallest batch size that has a row for each text."""
        count = len(self._running)
        decoder = next(each for each in self._decoders if len(each.token_B) >= count)
        if decoder is not self._decoder:
            kept = min(len(decoder.token_B), len(self._decoder.token_B))
            decoder.state_LBS[:, :kept].copy_(self._decoder.state_LBS[:, :kept])
            decoder.token_B[:kept].copy_(self._decoder.token_B[:kept])
            self._decoder = decoder
