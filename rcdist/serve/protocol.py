"""What clients may ask and what they get: OpenAI's completions, with one clear error for what cannot be."""

import json
from typing import Annotated, Any, Literal

from fastapi.responses import JSONResponse
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from rcdist.errors import RcdistError

MAX_CHOICES = 128
"""Texts of one request."""
_MAX_STOPS = 16
_MAX_STOP_CHARACTERS = 256

ErrorType = Literal["invalid_request_error", "authentication_error", "rate_limit_error", "server_error"]


class RequestError(RcdistError):
    """Report a request that cannot be answered.

    Args:
        status: of HTTP, 4xx or 5xx.
        field: of the request.
        value: what it has.
        rule: what it broke.
        remedy: what to do.
        type: OpenAI's name for errors of its kind.
        headers: that go with it.
    """

    def __init__(
        self,
        status: int,
        field: str,
        value: object,
        rule: str,
        remedy: str,
        *,
        type: ErrorType = "invalid_request_error",
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(field, value, rule, remedy)
        self.status, self.type, self.headers = status, type, headers

    def response(self) -> JSONResponse:
        """Return what goes over the wire, which is ASCII whatever the request was."""
        error = {"message": str(self), "type": self.type, "param": self.field or None, "code": None}
        return AsciiResponse({"error": error}, self.status, self.headers)


class AsciiResponse(JSONResponse):
    """Send JSON in ASCII: halves of surrogate pairs have no UTF-8, and may be in what a message shows."""

    def render(self, content: Any) -> bytes:
        """Return the bytes."""
        return json.dumps(content, separators=(",", ":")).encode()


def _text(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("it has half of a surrogate pair, which is no character") from None
    return value


String = Annotated[str, AfterValidator(_text)]
Stop = Annotated[String, Field(min_length=1, max_length=_MAX_STOP_CHARACTERS)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]


class StreamOptions(BaseModel):
    """Say what a stream has besides text."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False
    include_obfuscation: bool = False


class CompletionRequest(BaseModel):
    """Ask for continuations of prompts; keys, meanings and defaults are OpenAI's, top_k is ours.

    Keys of OpenAI's that change what is made, and are not done here, are taken with the value that means "off" only.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    model: str
    prompt: String | list[String] | list[TokenId] | list[list[TokenId]]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=10)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=1)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=_MAX_STOPS)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    echo: bool | None = None
    user: str | None = None
    best_of: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    logprobs: int | None = None
    suffix: str | None = None

    @property
    def num_choices(self) -> int:
        """Return how many continuations each prompt has."""
        return self.n or 1

    @property
    def stops(self) -> list[str]:
        """Return the strings of which any ends a text."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def prompts(self) -> list[str | list[int]]:
        """Return the prompts, one by one, as text or ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt  # type: ignore[return-value]

    def check_supported(self) -> None:
        """Refuse what is not done here.

        Raises:
            RequestError: names the field.
        """
        neutral: dict[str, tuple[Any, ...]] = {
            "best_of": (None, self.num_choices),
            "frequency_penalty": (None, 0),
            "presence_penalty": (None, 0),
            "logit_bias": (None, {}),
            "logprobs": (None,),
            "suffix": (None, ""),
        }
        for name, values in neutral.items():
            value = getattr(self, name)
            if value not in values:
                raise RequestError(400, name, value, "this server does not do that", "Leave it out")


def first_error(error: ValidationError | Any) -> RequestError:
    """Turn what pydantic, or FastAPI around it, found wrong with a request into one error."""
    details: ErrorDetails = error.errors()[0]
    place = [str(part) for part in details["loc"] if part != "body"]
    if details["type"] == "json_invalid":
        return RequestError(400, "", "", f"The body is not JSON ({details['ctx']['error']})", "Send a JSON object")
    # Of a union each kind complains: the first place is the field.
    field = place[0] if place else ""
    rule = details["msg"].removeprefix("Value error, ").replace("Input should", "should")
    value = "" if details["type"] == "missing" else details.get("input")
    return RequestError(400, field, value, rule, "Correct the request" if field else "Send a JSON object")
