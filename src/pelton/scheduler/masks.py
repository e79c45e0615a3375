"""Token ids that a row must not draw, found on the host from its known tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def banned_tokens(token_ids: list[int], bad_words: Iterable[Sequence[int]]) -> list[int]:
    """Last tokens of the bad words (token sequences) that the next token would complete.

    A word may begin in the prompt: what must not come about is the whole word, wherever it starts.
    """
    banned = set()
    for word in bad_words:
        num_before = len(word) - 1
        if num_before == 0 or (num_before <= len(token_ids) and token_ids[-num_before:] == list(word[:-1])):
            banned.add(word[-1])
    return sorted(banned)
