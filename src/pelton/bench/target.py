"""The server under measurement: what it serves, which request fields it takes and how it counts prompts.

Everything is found out by a few small requests before anything is measured, so that a wrong address, model or
tokenizer is one clear line and not a table of nonsense.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec

from pelton.bench.audit.limits import make_roofline
from pelton.bench.client import Address, Client, Exchange
from pelton.bench.options import TargetOptions
from pelton.bench.prompts.factory import PromptFactory
from pelton.bench.prompts.prompt import Prompt
from pelton.bench.prompts.source import NO_MATERIAL, Material
from pelton.bench.prompts.trial import Content, TrialPrompts
from pelton.bench.prompts.vocabulary import make_vocabulary
from pelton.bench.protocols.openai import OUTPUT_CONTROLS, Answer, Dialect, error_text, read_answer
from pelton.bench.results import HardwareFacts, TargetInfo
from pelton.errors import ConfigError, ServerError
from pelton.tokenizer.tokenizer import Tokenizer

TINY_MODEL = "pelton-tiny"
PROBE_OUTPUT_TOKENS = 2
PROBE_SIZES_ABOVE_FLOOR = (6, 17, 40)
LOOK_UP_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Target:
    """A server that answered, ready to be measured."""

    client: Client
    dialect: Dialect
    prompts: PromptFactory
    tokenizer: Tokenizer
    info: TargetInfo
    material: Material = NO_MATERIAL
    """What prompts are made of besides the tokenizer's words."""
    hardware: HardwareFacts | None = None
    """What serves and what is served, where the server tells."""

    def trial_prompts(self, content: Content, *, seed: str) -> TrialPrompts:
        """The prompts of one trial of a cell."""
        return TrialPrompts(self.prompts, self.material, content, seed=seed)

    def count_tokens(self, text: str) -> int:
        """Tokens of generated text, for servers that report no usage."""
        return len(self.tokenizer.encode(text, add_special_tokens=False))


async def open_target(options: TargetOptions, *, seed: int, material: Material = NO_MATERIAL) -> Target:
    """Finds out what the benchmark needs to know of a server.

    Raises:
        ServerError: it cannot be reached or does not answer as an OpenAI-compatible server does.
        ConfigError: the model, the tokenizer or an option does not fit the server.
    """
    address = Address.parse(options.url)
    client = Client(address, headers=_headers(options), timeout_s=options.request_timeout)
    models = await _list_models(client)
    model, entry = _choose_model(options.model, models, address.url)
    directory = _find_tokenizer(options.tokenizer, model, entry)
    tokenizer = Tokenizer.from_dir(directory)
    if options.endpoint == "chat" and not tokenizer.has_chat_template:
        raise ConfigError(f"tokenizer {str(directory)!r} has no chat template, so the size of a chat prompt cannot be "
                          "known; set endpoint to completions or give a tokenizer that has one")
    prompts = PromptFactory(make_vocabulary(tokenizer, is_chat=options.endpoint == "chat",
                                            token_ids=options.token_ids), seed=seed, token_ids=options.token_ids)
    probe = _Probe(client, options, model, prompts)
    await probe.settle()
    correction = probe.count_correction(directory)
    prompts.correction = correction
    version = await _version(client)
    client.close()
    return Target(
        client=client, dialect=probe.dialect, prompts=prompts, tokenizer=tokenizer, material=material,
        info=TargetInfo(
            url=address.url, model=model, endpoint=options.endpoint, sends_token_ids=options.token_ids,
            tokenizer=str(directory), template_tokens=prompts.template_tokens, frame_correction_tokens=correction,
            tokenizer_sha256=hashlib.sha256((directory / "tokenizer.json").read_bytes()).hexdigest(),
            output_control=probe.dialect.output_control, reports_usage=probe.reports_usage,
            reports_stream_usage=probe.reports_stream_usage, server_header=probe.server_header, version=version),
        hardware=_hardware(entry))


def _hardware(entry: dict[str, Any]) -> HardwareFacts | None:
    """What a Pelton server says of itself in /v1/models; None of any other, or of one whose GPU is in no table."""
    told = entry.get("pelton")
    if not isinstance(told, dict):
        return None
    try:
        facts = msgspec.convert({**told, "source": "server"}, HardwareFacts)
        make_roofline(facts)
    except (msgspec.ValidationError, ConfigError):
        return None
    return facts


def _headers(options: TargetOptions) -> dict[str, str]:
    key = options.api_key or os.environ.get("OPENAI_API_KEY")
    return {"Authorization": f"Bearer {key}"} if key else {}


def refusal(address: Address, route: str, exchange: Exchange, answer: Answer | None = None) -> ServerError:
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
    return ServerError(f"{url} did not answer {route} as an OpenAI-compatible server does ({kind}): {message}")


async def _list_models(client: Client) -> list[dict[str, Any]] | None:
    """What /v1/models lists, or None when the server has no such route."""
    exchange = await client.send(client.build("GET", "/models"), timeout_s=LOOK_UP_TIMEOUT_S)
    if exchange.failure is not None:
        raise refusal(client.address, "/models", exchange)
    if exchange.response.status in (404, 405, 501):
        return None
    if exchange.response.status != 200:
        raise refusal(client.address, "/models", exchange)
    try:
        data = msgspec.json.decode(exchange.response.body, type=dict[str, Any]).get("data")
        if not isinstance(data, list) or not all(isinstance(m, dict) and isinstance(m.get("id"), str) for m in data):
            raise ValueError("no list of models")
    except (msgspec.DecodeError, ValueError):
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


def _find_tokenizer(asked: str | None, model: str, entry: dict[str, Any]) -> Path:
    """Directory with the served model's tokenizer.json."""
    tiny = Path(str(files("pelton") / "models_data" / TINY_MODEL))
    if asked is not None:
        directory = tiny if asked == TINY_MODEL else Path(asked).expanduser()
        if not (directory / "tokenizer.json").is_file():
            raise ConfigError(f"tokenizer {asked!r} holds no tokenizer.json; give the directory of the served model's "
                              "tokenizer")
        return directory
    root = entry.get("root")
    for candidate in (root, model):
        # Only a full path: a model's name must not pick up a directory that happens to stand here.
        if isinstance(candidate, str) and os.path.isabs(candidate):
            for directory in (Path(candidate), Path(candidate) / "tokenizer"):
                if (directory / "tokenizer.json").is_file():
                    return directory
    if TINY_MODEL in (model, root):
        return tiny
    raise ConfigError(f"the tokenizer of model {model!r} is not known here; give tokenizer, the directory that holds "
                      "its tokenizer.json")


async def _version(client: Client) -> str | None:
    exchange = await client.send(client.build("GET", "//version"), timeout_s=LOOK_UP_TIMEOUT_S)
    if exchange.failure is not None or exchange.response.status != 200:
        return None
    try:
        version = msgspec.json.decode(exchange.response.body, type=dict[str, Any]).get("version")
    except (msgspec.DecodeError, msgspec.ValidationError):
        return None
    return version if isinstance(version, str) else None


class _Probe:
    """Small requests that find out the dialect and check the token counts."""

    def __init__(self, client: Client, options: TargetOptions, model: str, prompts: PromptFactory) -> None:
        self._client = client
        self._options = options
        self._prompts = prompts
        self.dialect = Dialect(model=model, endpoint=options.endpoint, temperature=options.temperature,
                               output_tokens=PROBE_OUTPUT_TOKENS)
        self.reports_usage = False
        self.reports_stream_usage = False
        self.server_header: str | None = None
        self._counts: list[tuple[int, int]] = []

    async def settle(self) -> None:
        """Finds the richest request this server accepts, first without and then with streaming."""
        prompts = [self._prompts.make(self._prompts.floor + extra) for extra in PROBE_SIZES_ABOVE_FLOOR]
        controls = OUTPUT_CONTROLS if self._options.fixed_output else OUTPUT_CONTROLS[-1:]
        await self._first_accepted(prompts[0], [{"output_control": c} for c in controls], stream=False)
        answer = await self._first_accepted(prompts[1], [{}], stream=False)
        self.reports_usage = answer.prompt_tokens is not None and answer.output_tokens is not None
        usages = [{"asks_stream_usage": True}, {"asks_stream_usage": False}]
        answer = await self._first_accepted(prompts[2], usages, stream=True)
        self.reports_stream_usage = answer.prompt_tokens is not None and answer.output_tokens is not None

    async def _first_accepted(self, prompt: Prompt, variants: list[dict[str, Any]], *, stream: bool) -> Answer:
        for variant in variants:
            dialect = dataclasses.replace(self.dialect, **variant)
            request = self._client.build("POST", dialect.route, dialect.body(prompt, stream=stream))
            exchange = await self._client.send(request)
            if exchange.response.status in (400, 422) and variant is not variants[-1]:
                continue
            answer = read_answer(exchange, stream=stream)
            if answer.failure is not None:
                raise refusal(self._client.address, dialect.route, exchange, answer)
            break
        self.dialect = dialect
        self.server_header = exchange.response.headers.get("server", self.server_header)
        if answer.prompt_tokens is not None:
            self._counts.append((prompt.num_tokens, answer.prompt_tokens))
        return answer

    def count_correction(self, directory: Path) -> int:
        """Tokens the server counts beyond the client, when that is the same for every size.

        A constant comes from another chat template or a special token; anything else is another tokenizer.
        """
        differences = {server - client for client, server in self._counts}
        if len(differences) > 1:
            counts = ", ".join(f"{client} as {server}" for client, server in self._counts)
            raise ConfigError(f"tokenizer {str(directory)!r} does not match the served model: prompts of the client's "
                              f"count were counted by the server: {counts}; give the served model's own tokenizer")
        return differences.pop() if differences else 0
