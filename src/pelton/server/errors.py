"""Errors as HTTP answers: OpenAI's error object on every route."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.responses import Response

from pelton.errors import CapacityError, EngineDeadError, RequestError

_TYPES = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error", 503: "service_unavailable"}
RETRY_AFTER_S = 1


class EngineFault(Exception):
    """The engine reported that a request failed through no fault of its own."""


class ServerStoppingError(Exception):
    """The server is going down and its grace for running requests is over."""

    def __init__(self) -> None:
        super().__init__("the server is stopping: ask again elsewhere or later")


def status_of(error: BaseException) -> int:
    """The HTTP status an error becomes."""
    match error:
        case RequestError(status=status):
            return status
        case CapacityError():
            return 429
        case EngineDeadError() | ServerStoppingError():
            return 503
    return 500


def error_object(status: int, message: str, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """OpenAI's error object."""
    kind = _TYPES.get(status, "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def describe(error: BaseException) -> tuple[int, dict[str, Any]]:
    """(status, error object) of an error; unexpected ones tell their class only, their traceback is for the log."""
    status = status_of(error)
    match error:
        case RequestError(param=param, code=code):
            return status, error_object(status, str(error), param=param, code=code)
        case CapacityError():
            return status, error_object(status, str(error), code="queue_full")
        case EngineDeadError():
            return status, error_object(status, str(error), code="engine_dead")
        case EngineFault():
            return status, error_object(status, str(error), code="engine_error")
        case ServerStoppingError():
            return status, error_object(status, str(error), code="server_stopping")
    return status, error_object(status, f"internal error: {type(error).__name__}", code="internal_error")


class JsonResponse(Response):
    """A JSON answer, encoded by msgspec."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return msgspec.json.encode(content)


def error_response(error: BaseException) -> JsonResponse:
    """The answer for an error raised while a request was handled."""
    status, content = describe(error)
    headers = {429: {"Retry-After": str(RETRY_AFTER_S)}, 401: {"WWW-Authenticate": "Bearer"}}.get(status)
    return JsonResponse(content, status_code=status, headers=headers)
