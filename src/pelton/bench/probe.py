"""Small requests before the measurement: what the server takes, and how it counts prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pelton.bench.client import Client
from pelton.bench.prompts.factory import PromptFactory
from pelton.bench.prompts.prompt import Prompt
from pelton.bench.protocols.answer import Answer
from pelton.bench.protocols.dialect import Dialect
from pelton.bench.service import Service, refusal
from pelton.errors import ConfigError

OUTPUT_TOKENS = 2
SIZES_ABOVE_FLOOR = (6, 17, 40)


class Probe:
    """Finds out the dialect and checks the token counts."""

    def __init__(self, client: Client, prompts: PromptFactory, service: Service) -> None:
        self._client = client
        self._prompts = prompts
        self._service = service
        self.dialect: Dialect = service.dialect
        self.reports_usage = False
        self.reports_stream_usage = False
        self.server_header: str | None = None
        self._counts: list[tuple[int, int]] = []

    async def settle(self, *, fixed: bool) -> None:
        """Finds the richest request this server accepts, first without and then with streaming.

        Args:
            fixed: ask for a fixed output length.

        Raises:
            ServerError: it accepts none.
        """
        prompts = [self._prompts.make(self._prompts.floor + extra) for extra in SIZES_ABOVE_FLOOR]
        await self._first_accepted(prompts[0], self.dialect.output_variants(fixed=fixed), stream=False)
        answer = await self._first_accepted(prompts[1], [self.dialect], stream=False)
        self.reports_usage = answer.prompt_tokens is not None and answer.output_tokens is not None
        variants = self.dialect.stream_variants() if self.dialect.can_stream else [self.dialect]
        answer = await self._first_accepted(prompts[2], variants, stream=self.dialect.can_stream)
        self.reports_stream_usage = answer.prompt_tokens is not None and answer.output_tokens is not None

    async def _first_accepted(self, prompt: Prompt, variants: Sequence[Dialect], *, stream: bool) -> Answer:
        for dialect in variants:
            route = dialect.route(stream=stream)
            body = dialect.body(prompt, output_tokens=OUTPUT_TOKENS, stream=stream)
            exchange = await self._client.send(self._client.build("POST", route, body))
            if exchange.response.status in (400, 422) and dialect is not variants[-1]:
                continue
            answer = dialect.read(exchange, stream=stream)
            if answer.failure is not None:
                raise refusal(self._client.address, route, exchange, answer, wanted=self._service.wanted)
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
