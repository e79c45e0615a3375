"""Log-probabilities in the three forms clients know: chat's, completions', and vLLM's prompt_logprobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pelton.tokenizer.detokenizer import IncrementalDetokenizer
from pelton.tokenizer.tokenizer import Tokenizer
from pelton.types import SamplingParams, TokenLogprobs

LOWEST = -9999.0
"""Stands for minus infinity, which JSON cannot write (as in vLLM)."""


def token_text(tokenizer: Tokenizer, token_id: int) -> str:
    """A token as text; one that is part of a character as `bytes:\\xe4\\xbd`, OpenAI's spelling."""
    data = tokenizer.pieces[token_id]
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _finite(logprob: float) -> float:
    return max(logprob, LOWEST)


def chat_logprobs(tokenizer: Tokenizer, entries: Sequence[TokenLogprobs]) -> dict[str, Any]:
    """`choices[].logprobs` of chat completions: the chosen token and the likeliest ones per position."""

    def item(token_id: int, logprob: float) -> dict[str, Any]:
        return {"token": token_text(tokenizer, token_id), "logprob": _finite(logprob),
                "bytes": list(tokenizer.pieces[token_id])}

    content = []
    for entry in entries:
        chosen, *likeliest = map(item, entry.token_ids, entry.logprobs)
        content.append({**chosen, "top_logprobs": likeliest})
    return {"content": content, "refusal": None}


def prompt_logprobs(tokenizer: Tokenizer, entries: Sequence[TokenLogprobs | None]) -> list[dict[str, Any] | None]:
    """vLLM's `prompt_logprobs`: per prompt token {token id: {logprob, rank, decoded_token}}, the first None."""
    out: list[dict[str, Any] | None] = []
    for entry in entries:
        if entry is None:
            out.append(None)
            continue
        ranks = [entry.rank, *range(1, len(entry.token_ids))]
        row: dict[str, Any] = {}
        for token_id, logprob, rank in zip(entry.token_ids, entry.logprobs, ranks, strict=True):
            row.setdefault(str(token_id), {"logprob": _finite(logprob), "rank": rank,
                                           "decoded_token": token_text(tokenizer, token_id)})
        out.append(row)
    return out


class CompletionLogprobs:
    """`choices[].logprobs` of the completions route, whose text_offset counts from the start of the returned text."""

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int], *, text_start: int):
        """Args:
            prompt_ids: the tokens before the first one that is reported.
            text_start: characters of the returned text before it.
        """
        self._tokenizer = tokenizer
        self._detokenizer = IncrementalDetokenizer(tokenizer, prompt_ids, SamplingParams())
        self._start = text_start

    def take(self, token_ids: Sequence[int], entries: Sequence[TokenLogprobs | None]) -> dict[str, Any]:
        """The next tokens' entries. None stands for a token without context, the first of a prompt."""
        tokens, logprobs, tops, offsets = [], [], [], []
        for token_id, entry in zip(token_ids, entries, strict=True):
            tokens.append(token_text(self._tokenizer, token_id))
            logprobs.append(None if entry is None else _finite(entry.logprobs[0]))
            tops.append(self._likeliest(entry))
            offsets.append(self._start + self._detokenizer.num_chars)
            self._detokenizer.push([token_id])
        return {"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": offsets}

    def _likeliest(self, entry: TokenLogprobs | None) -> dict[str, float] | None:
        """Token text -> log-probability of the likeliest, and of the chosen one if it is none of them."""
        if entry is None:
            return None
        ordered = [*zip(entry.token_ids[1:], entry.logprobs[1:], strict=True), (entry.token_ids[0], entry.logprobs[0])]
        out: dict[str, float] = {}
        for token_id, logprob in ordered:
            out.setdefault(token_text(self._tokenizer, token_id), _finite(logprob))
        return out
