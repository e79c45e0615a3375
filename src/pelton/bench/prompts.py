"""Synthetic prompts of an exact size in the served model's own tokens.

A prompt is a row of words drawn at random from the tokenizer's vocabulary, made so that the whole request (chat
template, special tokens) encodes to exactly the size asked for. No two prompts of a run share their first content
token while the vocabulary lasts, and never their first two, so that no prefix cache can hold more than the template.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile

from pelton.errors import ConfigError

DESCRIPTION = "synthetic: random words of the tokenizer's vocabulary, first content tokens never repeated"
MAX_VOCAB_SCANNED = 40_000
MIN_WORDS = 64
MAX_FILLER_WORDS = 4_096
MAX_FIRST_WORDS_TRIED = 200
MAX_ADJUSTMENTS = 12

_WORD = re.compile(r"[A-Za-z]{1,16}")
_SYLLABLES = [a + b for a in "bcdfglmnprst" for b in "aeiou"]  # for vocabularies of little more than bytes


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt: its content as text, or as token ids where the route takes them."""

    text: str
    token_ids: list[int] | None
    num_tokens: int
    """Tokens of the whole prompt, template included, by the client's count."""
    messages: list[dict[str, str]] | None = None
    """The whole conversation where the prompt is more than one message (chat)."""


@dataclass(frozen=True)
class Vocabulary:
    """What prompts need of a tokenizer, for one route.

    `encode` counts a prompt's content as the server will: inside the chat template, or with the special tokens of a
    plain prompt. `encode_plain` adds nothing.
    """

    encode: Callable[[str], list[int]]
    encode_plain: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]
    size: int


class PromptFactory:
    """Makes the prompts of one run; equal seeds make equal prompts."""

    def __init__(self, vocabulary: Vocabulary, *, seed: int, token_ids: bool = False, correction: int = 0) -> None:
        """Args:
            token_ids: make rows of token ids; the template does not apply.
            correction: tokens the server counts beyond the client, the same for every prompt; may be set later.
        """
        self._vocabulary = vocabulary
        self._random = random.Random(seed)
        self._uses_token_ids = token_ids
        self.correction = correction
        self._first_words: Iterator[str] | None = None
        self._used: set[tuple[int, ...]] = set()
        self._first_ids: dict[str, int] = {}
        self.first_tokens_unique = True

    @cached_property
    def _words(self) -> list[str]:
        """Alphabetic words of the vocabulary in random order."""
        size = self._vocabulary.size
        ids = self._random.sample(range(size), min(size, MAX_VOCAB_SCANNED))
        words = {text: None for i in ids if _WORD.fullmatch(text := self._vocabulary.decode([i]).strip())}
        return list(words) if len(words) >= MIN_WORDS else [*words, *_SYLLABLES]

    @cached_property
    def _fillers(self) -> list[str]:
        """Words that add exactly one token when a space and the word follow other words."""
        encode, base = self._vocabulary.encode_plain, self._words[0]
        num_base = len(encode(base))
        fits = (w for w in self._words if len(encode(f"{base} {w}")) == num_base + 1)
        found = [w for w, _ in zip(fits, range(MAX_FILLER_WORDS))]
        return found or self._words

    @cached_property
    def _frame(self) -> tuple[int, int]:
        """Tokens of the template before and after the content."""
        if self._uses_token_ids:
            return 0, 0
        # Contents that begin and end unlike, so that what the encodings share is the template.
        one, two = (self._vocabulary.encode(text) for text in ("Quick brown fox", "under the moon"))
        before = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, two)))
        after = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one[::-1], two[::-1])))
        return before, after

    @property
    def template_tokens(self) -> int:
        """Tokens of a prompt without content, as the server counts them."""
        return sum(self._frame) + self.correction

    @property
    def floor(self) -> int:
        """Smallest prompt that can be made: the template and one token of content."""
        return self.template_tokens + 1

    def check(self, num_tokens: int) -> None:
        """Refuses a size that cannot be made.

        Raises:
            ConfigError: it is below the floor.
        """
        if num_tokens < self.floor:
            raise ConfigError(
                f"prompt_tokens {num_tokens} is below the floor of {self.floor}: the chat template alone takes "
                f"{self.template_tokens} tokens; ask for {self.floor} or more, or use the completions endpoint with "
                "token_ids")

    def make(self, num_tokens: int) -> Prompt:
        """A prompt that the server will count as `num_tokens`.

        Raises:
            ConfigError: the size is below the floor, or this tokenizer cannot make it exactly.
        """
        self.check(num_tokens)
        size = num_tokens - self.correction
        for _ in range(MAX_FIRST_WORDS_TRIED):
            made = self._try_ids(size) if self._uses_token_ids else self._try_text(size)
            if made is not None:
                return made
        raise ConfigError(f"prompt_tokens {num_tokens}: no prompt of exactly this size was found with this tokenizer; "
                          "try another size or the completions endpoint with token_ids")

    def _try_ids(self, size: int) -> Prompt | None:
        row = [self._first_id(word) for word in self._draw(size)]
        return Prompt("", row, size) if self._claim(row) else None

    def _first_id(self, word: str) -> int:
        """The word's first token; kept, for encoding a word at a time costs more than sending the request."""
        if word not in self._first_ids:
            self._first_ids[word] = self._vocabulary.encode_plain(word)[0]
        return self._first_ids[word]

    def _try_text(self, size: int) -> Prompt | None:
        before, after = self._frame
        words = self._draw(max(size - before - after, 1))
        for _ in range(MAX_ADJUSTMENTS):
            text = " ".join(words)
            ids = self._vocabulary.encode(text)
            missing = size - len(ids)
            if missing == 0:
                content = ids[before : len(ids) - after]
                return Prompt(text, None, size) if content and self._claim(content) else None
            if missing > 0:
                words += self._random.choices(self._fillers, k=missing)
            elif len(words) + missing < 1:
                return None
            else:
                del words[missing:]
        return None

    def _draw(self, num_words: int) -> list[str]:
        return [self._next_first_word(), *self._random.choices(self._fillers, k=num_words - 1)]

    def _next_first_word(self) -> str:
        if self._first_words is not None and (word := next(self._first_words, None)) is not None:
            return word
        if self._first_words is not None:
            self.first_tokens_unique = False  # one round of the vocabulary is used up; from here pairs must differ
        shuffled = self._random.sample(self._words, len(self._words))
        self._first_words = iter(shuffled)
        return next(self._first_words)

    def _claim(self, content: list[int]) -> bool:
        """Marks the beginning of a content as used; False when another prompt began so."""
        key = tuple(content[:1] if self.first_tokens_unique else content[:2])
        if key in self._used:
            return False
        self._used.add(key)
        if self.first_tokens_unique:
            self._used.add(tuple(content[:2]))
        return True
