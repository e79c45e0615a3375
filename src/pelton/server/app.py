"""The HTTP application: routes, the API key, and errors in one shape. Knows no processes and no sockets."""

from __future__ import annotations

import asyncio
import hmac
import logging
from importlib import resources
from importlib.metadata import version
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from pelton.config import ServeConfig
from pelton.errors import EngineDeadError, PeltonError, RequestError
from pelton.metrics.registry import CONTENT_TYPE
from pelton.server.body import BodyTooLargeError, ClientLeftError, TooLargeResponse
from pelton.server.errors import EngineFault, JsonResponse, ServerStoppingError, error_response
from pelton.server.openai.chat import chat_completions
from pelton.server.openai.completions import completions
from pelton.server.openai.defaults import read_sampling_defaults
from pelton.server.openai.models import get_model, list_models
from pelton.server.state import EngineClientLike, ServerState
from pelton.tokenizer.tokenizer import Tokenizer

STATS_TIMEOUT_S = 10.0
OPEN_ROUTES = ("/health",)
"""Answered without the API key."""
_log = logging.getLogger("pelton.server")


def create_app(engine_client: EngineClientLike, tokenizer: Tokenizer, config: ServeConfig, *, model_name: str,
               tokenizer_dir: Path) -> Starlette:
    """The ASGI application of one engine.

    Args:
        model_name: what clients call the model, unless config.served_model_name says otherwise.
        tokenizer_dir: where the tokenizer was read from; shown as `root` in /v1/models. The model's sampling defaults
            are there too.

    Raises:
        CheckpointError: the sampling defaults cannot be used.
    """
    sampling_defaults = read_sampling_defaults(tokenizer_dir) if config.generation_config == "auto" else {}
    if sampling_defaults:
        told = ", ".join(f"{name} {value}" for name, value in sampling_defaults.items())
        _log.info("requests that say nothing else are sampled as the model's makers recommend: %s", told)
    app = Starlette(
        routes=[  # tried in this order: what is asked most comes first
            Route("/v1/completions", completions, methods=["POST"]),
            Route("/v1/chat/completions", chat_completions, methods=["POST"]),
            Route("/", playground),
            Route("/health", health),
            Route("/version", show_version),
            Route("/metrics", show_metrics),
            Route("/v1/models", list_models),
            Route("/v1/models/{model:path}", get_model),
        ],
        middleware=[
            # Starlette's own last resort raises again after its answer, and uvicorn then breaks the connection.
            Middleware(ExceptionMiddleware, handlers={Exception: on_unexpected}),
            *([Middleware(ApiKeyMiddleware, api_key=config.api_key)] if config.api_key else [])],
        exception_handlers={
            HTTPException: on_http_exception, PeltonError: on_error, EngineFault: on_error,
            ServerStoppingError: on_error, BodyTooLargeError: on_body_too_large, ClientLeftError: on_client_left})
    app.state.pelton = ServerState(engine_client, tokenizer, config, config.served_model_name or model_name,
                                   tokenizer_dir.resolve(), sampling_defaults=sampling_defaults)
    return app


class ApiKeyMiddleware:
    """Lets requests through that carry the key."""

    def __init__(self, app: ASGIApp, api_key: str):
        self._app = app
        self._expected = f"Bearer {api_key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_ROUTES or self._is_allowed(scope):
            await self._app(scope, receive, send)
            return
        error = RequestError("this server needs an API key: send it as 'Authorization: Bearer KEY'",
                             code="invalid_api_key", status=401)
        await error_response(error)(scope, receive, send)

    def _is_allowed(self, scope: Scope) -> bool:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        return len(given) == 1 and hmac.compare_digest(given[0], self._expected)


async def playground(request: Request) -> Response:
    """A page to talk to the model from a browser."""
    page = resources.files("pelton.server").joinpath("playground/index.html").read_text(encoding="utf-8")
    return HTMLResponse(page)


async def health(request: Request) -> Response:
    """200 while the engine process lives, else 503."""
    state: ServerState = request.app.state.pelton
    if not state.client.is_alive:
        raise EngineDeadError("the engine process has ended; restart the server")
    return JsonResponse({"status": "ok"})


async def show_version(request: Request) -> Response:
    """Pelton's version."""
    return JsonResponse({"version": version("pelton")})


async def show_metrics(request: Request) -> Response:
    """Prometheus text."""
    state: ServerState = request.app.state.pelton
    try:
        stats = await asyncio.wait_for(state.client.stats(), STATS_TIMEOUT_S)
    except (EngineDeadError, TimeoutError):
        stats = None
    return Response(state.metrics.render(stats), headers={"content-type": CONTENT_TYPE})


async def on_error(request: Request, error: Exception) -> Response:
    """Errors with a message meant for the client."""
    return error_response(error)


async def on_body_too_large(request: Request, error: Exception) -> Response:
    assert isinstance(error, BodyTooLargeError)
    return TooLargeResponse(error)


async def on_client_left(request: Request, error: Exception) -> Response:
    """Nobody reads this; 499 is what the access log shows."""
    return Response(status_code=499)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """What the router refuses."""
    assert isinstance(error, HTTPException)
    method, path = request.method, request.url.path
    texts = {404: f"no route {path!r} here", 405: f"{method} is not allowed on {path!r}"}
    response = error_response(RequestError(texts.get(error.status_code, error.detail), status=error.status_code))
    response.headers.update(error.headers or {})
    return response


async def on_unexpected(request: Request, error: Exception) -> Response:
    """A fault of ours: the client learns its class, the log the traceback."""
    _log.error("unhandled error in %s %s", request.method, request.url.path, exc_info=error)
    return error_response(error)
