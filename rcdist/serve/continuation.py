"""From tokens to the text that clients see: one prompt's continuation, and what carries news between threads."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from rcdist.data.tokenizer import Tokenizer
from rcdist.inference.text import StopStrings, TextStream
from rcdist.serve.batcher import Batcher, News, Reason, Text


@dataclass(frozen=True)
class Piece:
    """Hold what there is to show.

    Attributes:
        text: what is new; may be empty at the end.
        reason: why the text ends here. None: it goes on.
    """

    text: str
    reason: Reason | None


class Mailbox:
    """Carry news from the working thread into the event loop, of a whole turn at once."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._boxes: dict[Text, asyncio.Queue[News]] = {}

    def open(self, text: Text) -> asyncio.Queue[News]:
        """Return where the news of a text arrives; call from the event loop, before it is submitted."""
        self._loop = asyncio.get_running_loop()
        box = self._boxes[text] = asyncio.Queue()
        return box

    def close(self, text: Text) -> None:
        """Forget a text; what still comes of it is dropped."""
        self._boxes.pop(text, None)

    def publish(self, news: list[News]) -> None:
        """Deliver; call from any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._deliver, news)

    def _deliver(self, news: list[News]) -> None:
        for one in news:
            box = self._boxes.get(one.text)
            if box is not None:
                box.put_nowait(one)


class Continuation:
    """Follow one text from its prompt to its end.

    Args:
        text: submitted by the caller once this is made.
        tokenizer: of the model.
        stops: strings of which any ends the text; it is not shown.
        batcher: that works on it.
        mailbox: that the batcher publishes to.
    """

    def __init__(
        self, text: Text, tokenizer: Tokenizer, stops: Sequence[str], batcher: Batcher, mailbox: Mailbox
    ) -> None:
        self.text = text
        self._stream, self._stops = TextStream(tokenizer, text.prompt_ids), StopStrings(stops)
        self._batcher, self._mailbox = batcher, mailbox
        self._box = mailbox.open(text)
        self.num_tokens = 0
        """Made so far, those of a stop string too."""

    async def pieces(self) -> AsyncIterator[Piece]:
        """Yield what is new, as much as there is; the last one has the reason."""
        while True:
            arrived = [await self._box.get()]
            while not self._box.empty():
                arrived.append(self._box.get_nowait())
            piece = self._take(arrived)
            if piece.text or piece.reason:
                yield piece
            if piece.reason:
                return

    def close(self) -> None:
        """Stop the work on it, if it still goes on: its client has gone, or has all it wants."""
        self._batcher.cancel(self.text)
        self._mailbox.close(self.text)

    def _take(self, arrived: list[News]) -> Piece:
        tokens = [news.token for news in arrived if news.token is not None]
        self.num_tokens += len(tokens)
        reason = arrived[-1].reason
        text = self._stream.push(tokens) + (self._stream.finish() if reason is not None else "")
        shown = self._stops.push(text)
        if self._stops.is_found:
            return Piece(shown, "stop")
        return Piece(shown + self._stops.finish() if reason is not None else shown, reason)
