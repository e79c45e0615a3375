"""Whether two servers serve the same model: the same greedy texts and token counts for a few prompts.

Rounding differs between engines, and one token that falls the other way changes all after it; so texts are held to
their beginnings. Two models seldom begin an answer alike; one model nearly always does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from pelton.bench.options import TargetOptions
from pelton.bench.prompts.prompt import Prompt
from pelton.bench.service import refusal
from pelton.bench.target import Target, open_target

PROBE_TOKENS = 16
LEAST_AGREEMENT = 0.5
"""So much of two answers to a probe, on average over the probes, must be a common beginning."""
PROBES = (
    "The capital of France is", "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "Once upon a time there was a", "1, 2, 3, 4, 5, 6,", "import os\nimport sys\n\ndef main():\n",
    "Water boils at a temperature of", "SELECT name, price FROM products WHERE", "Dear Sir or Madam,")


@dataclass(frozen=True)
class Fingerprint:
    """A server's answers to the probes."""

    texts: list[str]
    prompt_tokens: list[int | None]
    """As the server counted them."""
    tokenizer_sha256: str
    template_tokens: int
    route: str
    """Protocol and endpoint."""


async def fingerprint(options: TargetOptions) -> Fingerprint:
    """Asks a server the probes, greedily.

    Raises:
        PeltonError: the server cannot be measured at all, or refuses a probe.
    """
    target = await open_target(dataclasses.replace(options, temperature=0.0), seed=0)
    texts, counts = [], []
    try:
        for text in PROBES:
            prompt = Prompt(text=text, token_ids=token_ids(target, text), num_tokens=0)
            exchange = await target.client.send(target.request(prompt, output_tokens=PROBE_TOKENS, stream=False))
            answer = target.dialect.read(exchange, stream=False)
            if answer.failure is not None:
                raise refusal(target.client.address, target.dialect.route(stream=False), exchange, answer)
            texts.append(answer.text)
            counts.append(answer.prompt_tokens)
    finally:
        target.client.close()
    return Fingerprint(texts, counts, target.info.tokenizer_sha256,
                       target.info.template_tokens + target.info.frame_correction_tokens,
                       f"{target.info.protocol} {target.info.endpoint}")


def token_ids(target: Target, text: str) -> list[int] | None:
    """A probe's ids, where prompts are sent so."""
    return target.tokenizer.encode(text, add_special_tokens=False) if target.info.sends_token_ids else None


def agreement(base: Fingerprint, other: Fingerprint) -> float:
    """Mean over the probes of the common beginning's share of the longer answer; 1 where all are equal."""
    shares = []
    for ours, theirs in zip(base.texts, other.texts):
        longer = max(len(ours), len(theirs))
        common = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs)))
        shares.append(common / longer if longer else 1.0)
    return sum(shares) / len(shares)


def differences(base: Fingerprint, other: Fingerprint) -> Iterator[str]:
    """What speaks against the same model; nothing where nothing does."""
    if base.route != other.route:
        yield f"they are asked by different routes ({base.route} and {other.route})"
    if base.tokenizer_sha256 != other.tokenizer_sha256:
        yield "the tokenizers are different files"
    counts = [(a, b) for a, b in zip(base.prompt_tokens, other.prompt_tokens) if None not in (a, b)]
    gaps = {b - a for a, b in counts}
    if len(gaps) > 1:
        yield f"prompts are counted differently ({', '.join(f'{a} and {b}' for a, b in counts[:4])} tokens)"
    share = agreement(base, other)
    if share < LEAST_AGREEMENT:
        where = next(i for i, (a, b) in enumerate(zip(base.texts, other.texts)) if a != b)
        yield (f"greedy answers agree for {share:.0%} of their length; to {PROBES[where]!r} one answers "
               f"{base.texts[where]!r}, the other {other.texts[where]!r}")


def remarks(base: Fingerprint, other: Fingerprint) -> Iterator[str]:
    """What a reader should know of two servers that count as the same model."""
    gaps = {b - a for a, b in zip(base.prompt_tokens, other.prompt_tokens) if None not in (a, b)}
    if len(gaps) == 1 and (gap := gaps.pop()):
        yield f"its template is {gap:+d} tokens beside the base's"
    if None in other.prompt_tokens:
        yield "it reports no usage, so that prompts' counts cannot be compared"
    num_equal = sum(a == b for a, b in zip(base.texts, other.texts))
    yield f"{num_equal} of {len(PROBES)} greedy answers are equal, {agreement(base, other):.0%} of their length agrees"
