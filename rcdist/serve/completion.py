"""One request of /v1/completions: its prompts become texts of the batcher, and their pieces the answer."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from rcdist.data.tokenizer import Tokenizer
from rcdist.inference.generate import Sampling, encode_prompt
from rcdist.serve.batcher import Batcher, Text
from rcdist.serve.continuation import Continuation, Mailbox, Piece
from rcdist.serve.limits import Limits
from rcdist.serve.metrics import ServerMetrics
from rcdist.serve.protocol import MAX_CHOICES, CompletionRequest, RequestError

_DEFAULT_MAX_TOKENS = 16
_BUSY = "Try again in a moment, or start the server with more --max_running or --max_waiting"


@dataclass(frozen=True)
class Served:
    """Hold what the application answers from.

    Attributes:
        name: of the model, which requests must give.
        tokenizer: of the model.
        batcher: does the work, in a thread of its own, and publishes to `mailbox`.
        mailbox: brings its news.
        limits: of requests.
        created: seconds since 1970, of the model.
    """

    name: str
    tokenizer: Tokenizer
    batcher: Batcher
    mailbox: Mailbox
    limits: Limits
    created: int = 0


@dataclass
class _Choice:
    """Hold one continuation of one prompt."""

    index: int
    prompt: str
    continuation: Continuation


class Completion:
    """Answer one request.

    Raises:
        RequestError: it asks for more than the limits, or there is no room for it now.
    """

    def __init__(self, served: Served, metrics: ServerMetrics, request: CompletionRequest) -> None:
        self._served, self._metrics, self._request = served, metrics, request
        self._start = time.monotonic()
        self._is_first = True
        self._head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": served.name,
        }
        prompts = self._read_prompts()
        self._num_prompt_tokens = sum(len(ids) for _, ids in prompts)
        self._choices = self._submit(prompts)
        metrics.prompt_tokens.inc(self._num_prompt_tokens)

    def _read_prompts(self) -> list[tuple[str, list[int]]]:
        """Return the text of each prompt, and its ids with the document boundary in front."""
        tokenizer, limit = self._served.tokenizer, self._served.limits.prompt_tokens
        given = self._request.prompts
        if not 1 <= len(given) * self._request.num_choices <= MAX_CHOICES:
            rule = f"a request has 1 to {MAX_CHOICES} texts, prompts times n"
            raise RequestError(400, "prompt", f"{len(given)} prompts", rule, "Send several requests")
        known = tokenizer.known_ids
        read = []
        for prompt in given:
            if isinstance(prompt, str):
                text, ids = prompt, encode_prompt(tokenizer, prompt)
            else:
                wrong = next((i for i in prompt if i not in known), None)
                if wrong is not None:
                    raise RequestError(400, "prompt", wrong, "the tokenizer has no such id", "Send text")
                boundary = [] if prompt[:1] == [tokenizer.eod_id] else [tokenizer.eod_id]
                text, ids = tokenizer.decode(prompt), boundary + prompt
            if len(ids) > limit:
                rule = f"at most {limit}, the document boundary included"
                raise RequestError(400, "prompt", f"{len(ids)} tokens", rule, "Shorten it")
            read.append((text, ids))
        return read

    def _submit(self, prompts: list[tuple[str, list[int]]]) -> list[_Choice]:
        request, served = self._request, self._served
        max_tokens = request.max_tokens or _DEFAULT_MAX_TOKENS
        if max_tokens > served.limits.max_tokens:
            rule = f"this server makes at most {served.limits.max_tokens}"
            raise RequestError(400, "max_tokens", max_tokens, rule, "Ask for fewer")
        seed = secrets.randbits(62) if request.seed is None else request.seed
        choices: list[_Choice] = []
        for text, ids in prompts:
            for _ in range(request.num_choices):
                index = len(choices)
                sampling = Sampling(
                    1.0 if request.temperature is None else request.temperature,
                    request.top_k,
                    1.0 if request.top_p is None else request.top_p,
                    (seed + index) % 2**63,
                )
                work = Text(ids, max_tokens, sampling)
                parts = (work, served.tokenizer, request.stops, served.batcher, served.mailbox)
                choices.append(_Choice(index, text, Continuation(*parts)))
        if not served.batcher.submit([choice.continuation.text for choice in choices]):
            for choice in choices:
                choice.continuation.close()
            raise self._no_room()
        return choices

    def _no_room(self) -> RequestError:
        batcher = self._served.batcher
        if not batcher.is_alive:
            return _stopped()
        rule = f"{batcher.num_running} texts are being continued and {batcher.num_waiting} wait"
        count = f"{len(self._request.prompts) * self._request.num_choices} texts"
        headers = {"Retry-After": "1"}
        return RequestError(429, "prompt", count, rule, _BUSY, type="rate_limit_error", headers=headers)

    async def whole(self) -> dict[str, Any]:
        """Return the answer once all of it is there."""
        done = []
        try:
            for choice in self._choices:
                text, reason = choice.prompt if self._request.echo else "", None
                async for piece in choice.continuation.pieces():
                    self._note(piece)
                    text, reason = text + piece.text, piece.reason
                if reason == "error":
                    raise _stopped()
                done.append(_choice(choice.index, text, reason))
        finally:
            self._close()
        return self._head | {"choices": done, "usage": self._usage()}

    async def events(self) -> AsyncIterator[str]:
        """Yield server-sent events as text is made, of all choices as it comes."""
        try:
            async with aclosing(_merged(self._choices)) as pieces:
                if self._request.echo:
                    for choice in self._choices:
                        yield self._event([_choice(choice.index, choice.prompt, None)])
                async for choice, piece in pieces:
                    self._note(piece)
                    if piece.reason == "error":
                        yield f"data: {bytes(_stopped().response().body).decode()}\n\n"
                        return
                    yield self._event([_choice(choice.index, piece.text, piece.reason)])
            options = self._request.stream_options
            if options is not None and options.include_usage:
                yield self._event([], self._usage())
            yield "data: [DONE]\n\n"
        finally:
            self._close()

    def _event(self, choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> str:
        event = self._head | {"choices": choices} | ({} if usage is None else {"usage": usage})
        return f"data: {json.dumps(event, separators=(',', ':'))}\n\n"

    def _usage(self) -> dict[str, int]:
        made = sum(choice.continuation.num_tokens for choice in self._choices)
        prompt = self._num_prompt_tokens
        return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}

    def _note(self, piece: Piece) -> None:
        if self._is_first and piece.text:
            self._is_first = False
            self._metrics.first_token.observe(time.monotonic() - self._start)

    def _close(self) -> None:
        for choice in self._choices:
            choice.continuation.close()
        self._metrics.made_tokens.inc(self._usage()["completion_tokens"])
        self._metrics.duration.observe(time.monotonic() - self._start)


def _choice(index: int, text: str, reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": reason}


def _stopped() -> RequestError:
    rule = "The model has stopped working on this replica"
    return RequestError(503, "", "", rule, "Try again; see the server's log", type="server_error")


async def _merged(choices: list[_Choice]) -> AsyncGenerator[tuple[_Choice, Piece], None]:
    """Yield the pieces of several continuations in the order in which they come."""
    following = {choice.index: aiter(choice.continuation.pieces()) for choice in choices}
    pending = {asyncio.ensure_future(anext(following[choice.index])): choice for choice in choices}
    try:
        while pending:
            done, _ = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for future in done:
                choice = pending.pop(future)
                piece = future.result()
                yield choice, piece
                if piece.reason is None:
                    pending[asyncio.ensure_future(anext(following[choice.index]))] = choice
    finally:
        for future in pending:
            future.cancel()
