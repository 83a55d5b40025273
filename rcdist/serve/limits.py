"""What a request may cost at most, and who may ask: checked before anything is read or computed."""

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rcdist.serve.protocol import RequestError


@dataclass(frozen=True)
class Limits:
    """Hold what requests may be at most.

    Attributes:
        prompt_tokens: of one prompt.
        max_tokens: made for one text.
        body_bytes: of a request.
        running: texts that are continued at a time.
        waiting: texts that wait for it.
    """

    prompt_tokens: int = 32_768
    max_tokens: int = 4_096
    body_bytes: int = 1_048_576
    running: int = 32
    waiting: int = 256


def key_digest(key: str) -> bytes:
    """Return what a server knows of its API key: enough to recognise it."""
    return hashlib.sha256(key.encode()).digest()


class Guard:
    """Refuse requests that are too large, or come without the key, before the application sees them.

    Args:
        app: what is guarded.
        body_bytes: of a request at most.
        key: `key_digest` of the API key. None: everyone may ask.
        count: is told the status of each refusal.
    """

    def __init__(self, app: ASGIApp, body_bytes: int, key: bytes | None, count: Callable[[int], None]) -> None:
        self._app, self._body_bytes, self._key, self._count = app, body_bytes, key, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body, and pass it on whole."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            headers = {name.lower(): value for name, value in scope["headers"]}
            self._check_key(scope["path"], headers.get(b"authorization", b""))
            body = await self._read(receive, headers.get(b"content-length", b"0"))
        except RequestError as error:
            self._count(error.status)
            await error.response()(scope, receive, send)
            return
        left = [body]

        async def whole() -> Message:
            if left:
                return {"type": "http.request", "body": left.pop(), "more_body": False}
            return await receive()  # that the client has gone

        await self._app(scope, whole, send)

    def _check_key(self, path: str, authorization: bytes) -> None:
        if self._key is None or not path.startswith("/v1"):
            return
        scheme, _, key = authorization.partition(b" ")
        given = hashlib.sha256(key.strip()).digest()
        if scheme.lower() != b"bearer" or not hmac.compare_digest(given, self._key):
            raise RequestError(
                401,
                "",
                "",
                "The API key is missing or wrong",
                "Send it as `Authorization: Bearer KEY`",
                type="authentication_error",
                headers={"WWW-Authenticate": "Bearer"},
            )

    async def _read(self, receive: Receive, announced: bytes) -> bytes:
        self._check_size(int(announced) if announced.isdigit() else 0)
        parts: list[bytes] = []
        size, is_more = 0, True
        while is_more:
            message = await receive()
            if message["type"] != "http.request":
                break
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            self._check_size(size)
            is_more = message.get("more_body", False)
        return b"".join(parts)

    def _check_size(self, size: int) -> None:
        if size > self._body_bytes:
            rule = f"a request has at most {self._body_bytes} bytes"
            raise RequestError(413, "body", f"{size} bytes", rule, "Send less at a time")
