"""Prompts of an exact size in the served model's own tokens.

A text is brought to its size at its end, so that the whole request (chat template, special tokens) encodes to exactly
what was asked for. Unless told otherwise no two prompts of a run share their first content token while the vocabulary
lasts, and never their first two, so that no prefix cache can hold more than the template.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile

from pelton.bench.counted import counted
from pelton.bench.prompts.prompt import Prompt
from pelton.bench.prompts.vocabulary import Messages, Vocabulary
from pelton.bench.prompts.words import Words
from pelton.errors import ConfigError

MAX_DRAFTS = 200
MAX_ADJUSTMENTS = 16


@dataclass(slots=True)
class Draft:
    """A text that is about as long as asked for: its pieces (words with the white space before them)."""

    pieces: list[str]
    num_kept: int = 1
    """Pieces at its beginning that must stay."""
    prefix: Sequence[int] = ()
    """Token ids with which the content was asked to begin, as others do. Where rows of ids are made, the pieces follow
    them; else the pieces hold their text."""
    row: Sequence[int] = ()
    """Token ids in the place of the pieces, where rows of ids are made of random words."""


class PromptFactory:
    """Makes the prompts of one run; equal seeds make equal prompts."""

    def __init__(self, vocabulary: Vocabulary, *, seed: int, token_ids: bool = False, correction: int = 0) -> None:
        """Args:
            token_ids: make rows of token ids; the template does not apply.
            correction: tokens the server counts beyond the client, the same for every prompt; may be set later.
        """
        self.vocabulary = vocabulary
        self.words = Words(vocabulary, random.Random(seed))
        self.uses_token_ids = token_ids
        self.correction = correction

    @property
    def first_tokens_unique(self) -> bool:
        """No two of the prompts that were to be unlike began with the same token."""
        return self.words.first_tokens_unique

    @property
    def trial_first_tokens_unique(self) -> bool:
        """No two of those of the same trial."""
        return self.words.trial_first_tokens_unique

    @cached_property
    def frame(self) -> tuple[int, int]:
        """Tokens of the template before and after the content."""
        if self.uses_token_ids:
            return 0, 0
        # Contents that begin and end unlike, so that what the encodings share is the template.
        one, two = (self.vocabulary.encode(text) for text in ("Quick brown fox", "under the moon"))
        before = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, two)))
        after = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one[::-1], two[::-1])))
        return before, after

    @property
    def template_tokens(self) -> int:
        """Tokens of a prompt without content, as the server counts them."""
        return sum(self.frame) + self.correction

    @property
    def floor(self) -> int:
        """Smallest prompt that can be made: the template and one token of content."""
        return self.template_tokens + 1

    def check(self, num_tokens: int, *, prefix_tokens: int = 0) -> None:
        """Refuses a size that cannot be made.

        Raises:
            ConfigError: it is below the floor, or leaves nothing beside the prefix that is to be shared.
        """
        if num_tokens < self.floor:
            raise ConfigError(
                f"prompt_tokens {num_tokens} is below the floor of {self.floor}: {self.vocabulary.frame} alone takes "
                f"{counted(self.template_tokens, 'token')}; ask for {self.floor} or more, or use the completions "
                "endpoint with token_ids")
        if num_tokens < self.floor + prefix_tokens:
            raise ConfigError(
                f"prompt_tokens {num_tokens} is below the floor of {self.floor + prefix_tokens}: the shared prefix "
                f"takes {prefix_tokens} tokens, {self.vocabulary.frame} {self.template_tokens}, and one must be the "
                "prompt's own")

    def make(self, num_tokens: int) -> Prompt:
        """A prompt of random words that the server will count as `num_tokens`.

        Raises:
            ConfigError: the size is below the floor, or this tokenizer cannot make it exactly.
        """
        return self.fit(num_tokens, self.draft_words)

    def draft_words(self, size: int, prefix: Sequence[int] = ()) -> Draft:
        """Random words, or as rows of ids their tokens after those of a prefix."""
        if self.uses_token_ids:
            return Draft([], prefix=prefix, row=self.words.row(size - len(prefix)))
        return Draft([self.words.first(), *self.words.fillers(size - 1)])

    def fit(self, num_tokens: int, draft: Callable[[int], Draft], *, more: Callable[[int], list[str]] | None = None,
            is_unique: bool = True) -> Prompt:
        """A prompt that the server will count as `num_tokens`, from drafts that are cut or lengthened at their ends.

        Args:
            draft: makes a text of about so many tokens of content; asked again when one does not do.
            more: makes pieces to lengthen it with; random words by default.
            is_unique: refuse a content that begins, after its prefix, as another one did.

        Raises:
            ConfigError: the size is below the floor, or this tokenizer cannot make it exactly.
        """
        self.check(num_tokens)
        size = num_tokens - self.correction
        attempt = self._fit_ids if self.uses_token_ids else self._fit_text
        for _ in range(MAX_DRAFTS):
            drafted = draft(max(size - sum(self.frame), 1))
            made = attempt(drafted, size, more or self.words.fillers)
            if made is None:
                continue
            text, content = made
            num_shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(content, drafted.prefix)))
            if num_shared == len(content) or (is_unique and not self.words.claim(content[num_shared:])):
                continue
            ids = content if self.uses_token_ids else None
            return Prompt("" if ids else text, ids, size, prefix_tokens=num_shared)
        raise ConfigError(f"prompt_tokens {num_tokens}: no prompt of exactly this size was found with this tokenizer; "
                          "try another size or the completions endpoint with token_ids")

    def count_messages(self, messages: Messages) -> int:
        """Tokens of a conversation as the server counts it, template included."""
        return len(self.vocabulary.encode_messages(messages)) + self.correction

    def _fit_ids(self, draft: Draft, size: int, more: Callable[[int], list[str]]) -> tuple[str, list[int]] | None:
        ids = [*draft.prefix, *(draft.row or self.vocabulary.encode_plain("".join(draft.pieces)))]
        if len(ids) < size:
            ids = ids + [self.words.first_id(piece.strip()) for piece in more(size - len(ids))]
        return "", ids[:size]

    def _fit_text(self, draft: Draft, size: int, more: Callable[[int], list[str]]) -> tuple[str, list[int]] | None:
        """(text, token ids of the content) of exactly the size; None when the draft does not lead there."""
        before, after = self.frame
        pieces = draft.pieces
        for _ in range(MAX_ADJUSTMENTS):
            text = "".join(pieces)
            ids = self.vocabulary.encode(text)
            missing = size - len(ids)
            if missing == 0:
                content = ids[before : len(ids) - after]
                return (text, content) if content else None
            if missing > 0:
                pieces = pieces + more(missing)
                continue
            tokens_per_piece = max((len(ids) - before - after) / len(pieces), 1.0)
            num_left = max(len(pieces) - max(round(-missing / tokens_per_piece), 1), draft.num_kept)
            if num_left == len(pieces):
                return None
            pieces = pieces[:num_left]
        return None
