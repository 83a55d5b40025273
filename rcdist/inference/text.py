"""Text as it comes, token by token: characters and blanks whole, and nothing of a stop string."""

from collections.abc import Iterable, Sequence

from rcdist.data.tokenizer import Tokenizer

_INCOMPLETE = "\ufffd"


class TextStream:
    """Turn ids into text piece by piece; the pieces joined are what decoding all ids at once gives.

    A character whose bytes lie in several tokens comes with the last of them. Tokenizers that write a blank in front of
    a word, and leave it out at the start of a text, are asked with the ids before as context. Cost per token: decoding
    the ids since the last whole character, and those of the piece before; less if several are pushed at a time.

    Args:
        tokenizer: of the ids.
        context: ids before the first that is pushed: of the prompt.
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._ids = list(context[-16:])
        self._start, self._shown = 0, len(self._ids)

    def push(self, tokens: Iterable[int]) -> str:
        """Take the next ids and return the text that is whole now; maybe none."""
        self._ids.extend(tokens)
        return self._new_text(is_last=False)

    def finish(self) -> str:
        """Return what was held back: bytes that make no character, each as U+FFFD."""
        return self._new_text(is_last=True)

    def _new_text(self, *, is_last: bool) -> str:
        before = self._tokenizer.decode(self._ids[self._start : self._shown])
        text = self._tokenizer.decode(self._ids[self._start :])
        if len(text) <= len(before) or (text.endswith(_INCOMPLETE) and not is_last):
            return ""
        # What was shown last is the context of what comes next.
        self._ids = self._ids[self._start :]
        self._start, self._shown = self._shown - self._start, len(self._ids)
        return text[len(before) :]


class StopStrings:
    """Hold text back while it may be the beginning of a stop string, and end where one is complete.

    Args:
        stops: none of them empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        assert all(stops)
        self._stops = tuple(stops)
        self._held = ""
        self.is_found = False
        """A stop string has come: there is no more text."""

    def push(self, text: str) -> str:
        """Take the next text and return what can be shown."""
        self._held += text
        at = min((i for stop in self._stops if (i := self._held.find(stop)) >= 0), default=-1)
        if at >= 0:
            self.is_found = True
            shown, self._held = self._held[:at], ""
            return shown
        keep = max((n for stop in self._stops for n in range(1, len(stop)) if self._held.endswith(stop[:n])), default=0)
        shown = self._held[: len(self._held) - keep]
        self._held = self._held[len(shown) :]
        return shown

    def finish(self) -> str:
        """Return what was held back: no stop string came of it."""
        held, self._held = self._held, ""
        return held
