"""What answers at an address: the protocol it speaks and the model to ask for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from pelton.bench.client import Address, Client, Exchange
from pelton.bench.options import TargetOptions
from pelton.bench.protocols.answer import Answer, error_text, read_object
from pelton.bench.protocols.dialect import Dialect
from pelton.bench.protocols.ollama import OllamaDialect
from pelton.bench.protocols.openai import OpenAIDialect
from pelton.bench.protocols.triton import GenerateDialect, InferDialect, Tensor, read_inputs
from pelton.errors import ConfigError, ServerError

LOOK_UP_TIMEOUT_S = 30.0
NO_ROUTE = (404, 405, 501)


@dataclass(frozen=True, kw_only=True)
class Service:
    """A model at an address, and the richest dialect that may be understood there."""

    protocol: str
    endpoint: str
    """chat and completions, or the protocol's own word."""
    model: str
    dialect: Dialect
    is_chat: bool
    """Whether the server puts prompts into the chat template."""
    entry: dict[str, Any] = field(default_factory=dict)
    """What the server's list of models says of it."""
    wanted: str = "an OpenAI-compatible server"


async def find_service(client: Client, options: TargetOptions) -> Service:
    """Finds the model that is asked for; protocol auto takes OpenAI's routes where there are any, else Triton's.

    Raises:
        ServerError: the address cannot be reached or does not answer as its protocol says.
        ConfigError: the model is not served, or has to be named.
    """
    if options.protocol == "ollama":
        return await _find_ollama(client, options)
    if options.protocol in ("triton", "kserve"):
        return await _find_triton(client, options)
    models = await _list_models(client)
    if models is None and options.protocol == "auto" and await _look_up(client, "/v2") is not None:
        return await _find_triton(client, options)
    model, entry = _choose_model(options.model, models, client.address.url)
    dialect = OpenAIDialect(model=model, endpoint=options.endpoint, temperature=options.temperature,
                            extra=options.extra_fields)
    return Service(protocol="openai", endpoint=options.endpoint, model=model, dialect=dialect,
                   is_chat=options.endpoint == "chat", entry=entry)


async def _find_triton(client: Client, options: TargetOptions) -> Service:
    """The model that is asked for, or the only one that takes text_input."""
    if options.token_ids:
        raise ConfigError("token_ids must be off for Triton, whose models take text")
    candidates = {}
    for name in [options.model] if options.model is not None else await _triton_models(client):
        metadata = await _look_up(client, f"/v2/models/{name}")
        inputs = _inputs_of(metadata)
        if "text_input" in inputs:
            candidates[name] = inputs
    if len(candidates) != 1:
        url = client.address.url
        if options.model is not None:
            raise ConfigError(f"model {options.model!r} is not served at {url}, or takes no text_input")
        raise ConfigError(f"{url} serves {len(candidates)} models that take text_input; give model, one of: "
                          f"{', '.join(candidates) or 'none'}")
    ((model, inputs),) = candidates.items()
    is_infer = options.protocol == "kserve"
    make = InferDialect if is_infer else GenerateDialect
    dialect = make(model=model, temperature=options.temperature, inputs=inputs, prefix=_prefix(client),
                   extra=options.extra_fields)
    return Service(protocol="kserve" if is_infer else "triton", endpoint="infer" if is_infer else "generate",
                   model=model, dialect=dialect, is_chat=False, wanted="Triton")


async def _triton_models(client: Client) -> list[str]:
    """Names of the models that are ready."""
    listed = await _look_up(client, "/v2/repository/index", body=b"{}", kind=list[dict[str, Any]])
    if listed is None:
        raise ConfigError(f"{client.address.url} does not list its models; give model")
    return list(dict.fromkeys(str(m.get("name")) for m in listed if m.get("state", "READY") == "READY"))


def _inputs_of(metadata: dict[str, Any] | None) -> dict[str, Tensor]:
    try:
        return {} if metadata is None else read_inputs(metadata)
    except (KeyError, TypeError):
        return {}


async def _find_ollama(client: Client, options: TargetOptions) -> Service:
    if options.token_ids:
        raise ConfigError("token_ids must be off for Ollama's own API, which takes text")
    if getattr(options, "cancellation_rate", 0) and getattr(options, "cancellation_delay", None) is None:
        raise ConfigError("cancellation_delay must be given for Ollama's own API, whose chunks the client does not "
                          "count")
    listed = await _look_up(client, "/api/tags")
    rows = listed.get("models") if listed is not None else None
    models = None if not isinstance(rows, list) else [{"id": str(m.get("name"))} for m in rows if isinstance(m, dict)]
    asked = options.model
    if asked is not None and models is not None and asked not in [m["id"] for m in models]:
        asked = f"{asked}:latest"  # as Ollama itself reads a name without a tag
    model, entry = _choose_model(asked, models, client.address.url)
    dialect = OllamaDialect(model=model, endpoint=options.endpoint, temperature=options.temperature,
                            prefix=_prefix(client), extra=options.extra_fields)
    return Service(protocol="ollama", endpoint=options.endpoint, model=model, dialect=dialect, entry=entry,
                   is_chat=options.endpoint == "chat", wanted="Ollama")


def _prefix(client: Client) -> str:
    """Path of the address, for routes that do not begin with /v1."""
    return client.address.base_path.removesuffix("/v1")


async def _look_up(client: Client, path: str, *, body: bytes | None = None, kind: Any = dict[str, Any]) -> Any:
    """The JSON of a route outside /v1; None when there is no such route, or something else is there.

    Raises:
        ServerError: the server cannot be reached, or fails.
    """
    request = client.build("GET" if body is None else "POST", f"/{_prefix(client)}{path}", body)
    exchange = await client.send(request, timeout_s=LOOK_UP_TIMEOUT_S)
    if exchange.failure is not None or exchange.response.status in (401, 403, 500, 502, 503):
        raise refusal(client.address, path, exchange, wanted="such a server")
    if exchange.response.status != 200:
        return None
    try:
        return msgspec.json.decode(exchange.response.body, type=kind)
    except (msgspec.DecodeError, msgspec.ValidationError):
        return None


def refusal(address: Address, route: str, exchange: Exchange, answer: Answer | None = None, *,
            wanted: str = "an OpenAI-compatible server") -> ServerError:
    """The one line for an exchange that was not answered as it should be."""
    failure = answer.failure if answer is not None else exchange.failure
    kind, url = (failure.kind if failure else f"http_{exchange.response.status}"), address.url
    if kind == "connect":
        return ServerError(f"cannot reach {url}: {failure.message}; check url and that the server is running")
    if kind == "timeout":
        return ServerError(f"{url} accepted {route} and then hung: {failure.message}; see the server's log or raise "
                           "request_timeout")
    if kind in ("http_401", "http_403"):
        return ServerError(f"{url} refused the key ({exchange.response.status}); give api_key")
    message = failure.message if failure else f"status {exchange.response.status}: {error_text(exchange.response.body)}"
    return ServerError(f"{url} did not answer {route} as {wanted} does ({kind}): {message}")


async def _list_models(client: Client) -> list[dict[str, Any]] | None:
    """What /v1/models lists, or None when the server has no such route."""
    exchange = await client.send(client.build("GET", "/models"), timeout_s=LOOK_UP_TIMEOUT_S)
    if exchange.failure is not None:
        raise refusal(client.address, "/models", exchange)
    if exchange.response.status in NO_ROUTE:
        return None
    if exchange.response.status != 200:
        raise refusal(client.address, "/models", exchange)
    try:
        data = read_object(exchange.response.body).get("data")
        if not isinstance(data, list) or not all(isinstance(m, dict) and isinstance(m.get("id"), str) for m in data):
            raise ValueError("no list of models")
    except ValueError:
        raise ServerError(f"{client.address.url} answers /models with something else than a list of models; "
                          "check that url is an OpenAI-compatible server") from None
    return data


def _choose_model(asked: str | None, models: list[dict[str, Any]] | None,
                  url: str) -> tuple[str, dict[str, Any]]:
    if not models:  # no such route, or a list of something else, such as what lies in a cache (transformers serve)
        if asked is None:
            raise ConfigError(f"{url} lists no models; give model")
        return asked, {}
    names = [m["id"] for m in models]
    if asked is None:
        if len(names) != 1:
            raise ConfigError(f"{url} serves {len(names)} models; give model, one of: {', '.join(names) or 'none'}")
        return names[0], models[0]
    if asked not in names:
        raise ConfigError(f"model {asked!r} is not served at {url}; it serves: {', '.join(names) or 'none'}")
    return asked, models[names.index(asked)]
