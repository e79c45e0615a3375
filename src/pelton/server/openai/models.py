"""GET /v1/models and /v1/models/NAME."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from pelton.server.errors import JsonResponse
from pelton.server.openai.call import check_model
from pelton.server.state import ServerState


async def list_models(request: Request) -> Response:
    """The one model this server has."""
    return JsonResponse({"object": "list", "data": [_model(request.app.state.pelton)]})


async def get_model(request: Request) -> Response:
    """The model of this name, or 404."""
    check_model(request.path_params["model"], request.app.state.pelton)
    return JsonResponse(_model(request.app.state.pelton))


def _model(state: ServerState) -> dict[str, Any]:
    """OpenAI's model object; `root` is the directory with the tokenizer that requests are counted with, `pelton` what
    serves, for the benchmark."""
    facts = state.client.ready.facts
    return {"id": state.model_name, "object": "model", "created": state.created, "owned_by": "pelton",
            "root": str(state.tokenizer_dir), "parent": None, "max_model_len": state.client.ready.max_seq_len,
            **({"pelton": facts} if facts else {})}
