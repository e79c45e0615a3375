"""The server under measurement: what it serves, which request fields it takes and how it counts prompts.

Everything is found out by a few small requests before anything is measured, so that a wrong address, model or
tokenizer is one clear line and not a table of nonsense.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec

from pelton.bench.audit.limits import make_roofline
from pelton.bench.client import Address, Client
from pelton.bench.options import TargetOptions
from pelton.bench.probe import Probe
from pelton.bench.prompts.factory import PromptFactory
from pelton.bench.prompts.prompt import Prompt
from pelton.bench.prompts.source import NO_MATERIAL, Material
from pelton.bench.prompts.trial import Content, TrialPrompts
from pelton.bench.prompts.vocabulary import make_vocabulary
from pelton.bench.protocols.dialect import Dialect
from pelton.bench.results import HardwareFacts, TargetInfo
from pelton.bench.service import LOOK_UP_TIMEOUT_S, find_service
from pelton.errors import ConfigError
from pelton.tokenizer.tokenizer import Tokenizer

TINY_MODEL = "pelton-tiny"


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

    def trial_prompts(self, content: Content, *, seed: str, num_turns: int = 1) -> TrialPrompts:
        """The prompts of one trial of a cell, whose conversations have so many turns."""
        return TrialPrompts(self.prompts, self.material, content, seed=seed, num_turns=num_turns)

    def request(self, prompt: Prompt, *, output_tokens: int, stream: bool) -> bytes:
        """The bytes of one request."""
        body = self.dialect.body(prompt, output_tokens=output_tokens, stream=stream)
        return self.client.build("POST", self.dialect.route(stream=stream), body)

    def count_tokens(self, text: str) -> int:
        """Tokens of generated text, for servers that report no usage."""
        return len(self.tokenizer.encode(text, add_special_tokens=False))


async def open_target(options: TargetOptions, *, seed: int, material: Material = NO_MATERIAL) -> Target:
    """Finds out what the benchmark needs to know of a server.

    Raises:
        ServerError: it cannot be reached or does not answer as its protocol says.
        ConfigError: the model, the tokenizer or an option does not fit the server.
    """
    address = Address.parse(options.url)
    client = Client(address, headers=_headers(options), timeout_s=options.request_timeout)
    service = await find_service(client, options)
    directory = _find_tokenizer(options.tokenizer, service.model, service.entry)
    tokenizer = Tokenizer.from_dir(directory)
    if service.is_chat and not tokenizer.has_chat_template:
        raise ConfigError(f"tokenizer {str(directory)!r} has no chat template, so the size of a chat prompt cannot be "
                          "known; set endpoint to completions or give a tokenizer that has one")
    prompts = PromptFactory(make_vocabulary(tokenizer, is_chat=service.is_chat, token_ids=options.token_ids), seed=seed,
                            token_ids=options.token_ids)
    probe = Probe(client, prompts, service)
    await probe.settle(fixed=options.fixed_output)
    correction = probe.count_correction(directory)
    prompts.correction = correction
    version = await _version(client)
    client.close()
    return Target(
        client=client, dialect=probe.dialect, prompts=prompts, tokenizer=tokenizer, material=material,
        info=TargetInfo(
            url=address.url, model=service.model, protocol=service.protocol, endpoint=service.endpoint,
            sends_token_ids=options.token_ids, extra_inputs=options.extra_fields,
            tokenizer=str(directory), template_tokens=prompts.template_tokens, frame_correction_tokens=correction,
            tokenizer_sha256=hashlib.sha256((directory / "tokenizer.json").read_bytes()).hexdigest(),
            output_control=probe.dialect.output_control, reports_usage=probe.reports_usage,
            reports_stream_usage=probe.reports_stream_usage, server_header=probe.server_header, version=version),
        hardware=_hardware(service.entry))


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
