"""`pelton generate`: one prompt, printed as it comes."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pelton.errors import ConfigError
from pelton.types import SamplingParams

if TYPE_CHECKING:
    from pelton.engine.llm import LLM, RequestOutput


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """`pelton generate`."""

    model: str = "pelton-tiny"
    """Checkpoint, hub id or engine directory."""
    prompt: str | None = None
    """Text to complete; none: standard input."""
    chat: bool = False
    """Put the prompt through the model's chat template as the user's message."""
    max_tokens: int = 128
    """Tokens to generate at most."""
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    """Keep the smallest set of likeliest tokens whose probability reaches this."""
    top_k: int = 0
    """Keep the k likeliest tokens; 0 keeps all."""
    seed: int | None = None
    """Makes sampling repeatable."""
    json: bool = False
    """Print one JSON object at the end in place of the stream."""


def run_generate(options: GenerateOptions, engine_options: dict[str, Any]) -> int:
    """Prints the completion of one prompt; returns the exit code.

    Raises:
        PeltonError: bad options, an unusable model, an impossible prompt.
    """
    prompt = options.prompt if options.prompt is not None else _read_prompt()
    if not prompt:
        raise ConfigError("prompt is empty; give a text after the model, or on standard input")
    params = SamplingParams(max_tokens=options.max_tokens, temperature=options.temperature, top_p=options.top_p,
                            top_k=options.top_k, seed=options.seed)
    from pelton.engine.llm import LLM

    with LLM(options.model, **engine_options) as llm:
        whole = llm.chat_prompt([{"role": "user", "content": prompt}]) if options.chat else prompt
        asyncio.run(_stream(llm, whole, params, options))
    return 0


def _read_prompt() -> str:
    if sys.stdin is None:
        raise ConfigError("prompt is missing and standard input is closed; give a text after the model")
    if sys.stdin.isatty():
        print("pelton: type the prompt, then Ctrl-D", file=sys.stderr)
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise ConfigError(f"prompt: standard input is not {error.encoding} text") from None


async def _stream(llm: LLM, prompt: Any, params: SamplingParams, options: GenerateOptions) -> None:
    began, first, shown = time.perf_counter(), 0.0, 0
    result: RequestOutput | None = None
    async for result in llm.generate_async(prompt, params):
        first = first or time.perf_counter()
        if not options.json:
            text = result.outputs[0].text
            print(text[shown:], end="", flush=True)
            shown = len(text)
    assert result is not None
    ended, done = time.perf_counter(), result.outputs[0]
    decode_s = ended - first
    rate = (len(done.token_ids) - 1) / decode_s if decode_s > 0 and len(done.token_ids) > 1 else None
    if options.json:
        print(json.dumps({"text": done.text, "token_ids": done.token_ids, "finish_reason": done.finish_reason,
                          "num_prompt_tokens": len(result.prompt_token_ids), "ttft_ms": 1e3 * (first - began),
                          "decode_tokens_per_s": rate}))
        return
    rate_text = f", {rate:.1f} tokens/s after the first" if rate else ""
    print(f"\n[{len(result.prompt_token_ids)} tokens in, {len(done.token_ids)} out ({done.finish_reason}), first after "
          f"{1e3 * (first - began):.0f} ms{rate_text}]", file=sys.stderr)
