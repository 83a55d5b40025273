"""The HTTP application: /v1/completions and /v1/models as OpenAI has them, /health and /metrics."""

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.responses import StreamingResponse
from starlette.types import ASGIApp

from rcdist.serve.completion import Completion, Served
from rcdist.serve.limits import Guard
from rcdist.serve.metrics import ServerMetrics
from rcdist.serve.protocol import AsciiResponse, CompletionRequest, RequestError, first_error


def build_app(served: Served, key: bytes | None = None) -> ASGIApp:
    """Return the application.

    Args:
        served: the model and what works on it.
        key: `limits.key_digest` of the API key that /v1 asks for. None: everyone may ask.
    """
    app = FastAPI(title="rcdist", docs_url=None, redoc_url=None, openapi_url=None)
    batcher = served.batcher
    metrics = ServerMetrics(lambda: batcher.num_running, lambda: batcher.num_waiting)
    _add_errors(app)

    @app.middleware("http")
    async def count(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await call_next(request)
        metrics.count_request(response.status_code)
        return response

    @app.get("/health")
    async def health() -> Response:
        is_alive = batcher.is_alive
        return AsciiResponse({"status": "ok" if is_alive else "stopped"}, 200 if is_alive else 503)

    @app.get("/metrics")
    async def scrape() -> Response:
        return Response(metrics.expose(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_describe(served)]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        _check_model(served, name)
        return _describe(served)

    @app.post("/v1/completions")
    async def completions(request: CompletionRequest) -> Response:
        _check_model(served, request.model)
        request.check_supported()
        completion = Completion(served, metrics, request)
        if request.stream:
            return StreamingResponse(completion.events(), media_type="text/event-stream")
        return AsciiResponse(await completion.whole())

    return Guard(app, served.limits.body_bytes, key, metrics.count_request)


def _add_errors(app: FastAPI) -> None:
    """Answer everything that goes wrong with OpenAI's error object."""

    @app.exception_handler(RequestError)
    async def refused(_: Request, error: RequestError) -> Response:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return first_error(error).response()

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        what = {404: "there is no such path", 405: "this path has another method"}.get(error.status_code, error.detail)
        remedy = "Use POST /v1/completions or GET /v1/models"
        return RequestError(error.status_code, "path", f"{request.method} {request.url.path}", what, remedy).response()


def _describe(served: Served) -> dict[str, Any]:
    return {"id": served.name, "object": "model", "created": served.created, "owned_by": "rcdist"}


def _check_model(served: Served, name: str) -> None:
    if name != served.name:
        raise RequestError(404, "model", name, f"this server has {served.name!r}", f"Ask for {served.name!r}")
