"""Words of a tokenizer's vocabulary: to begin prompts unlike each other, and to bring them to a size.

Pieces are words with the white space before them; a text is its pieces joined.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from functools import cached_property

from pelton.bench.prompts.vocabulary import Vocabulary

MAX_VOCAB_SCANNED = 40_000
MIN_WORDS = 64
MAX_FILLER_WORDS = 4_096

_WORD = re.compile(r"[A-Za-z]{1,16}")
_PIECE = re.compile(r"\s*\S+")
_SYLLABLES = [a + b for a in "bcdfglmnprst" for b in "aeiou"]  # for vocabularies of little more than bytes


def pieces_of(text: str) -> list[str]:
    """The words of a text, each with the white space before it; none of it is lost but that at both ends."""
    return _PIECE.findall(text.strip())


class Words:
    """The words of one run; equal seeds give equal words in the same order.

    Attributes:
        first_tokens_unique: no two contents claimed so far begin with the same token; without, two tokens.
    """

    def __init__(self, vocabulary: Vocabulary, rng: random.Random) -> None:
        self._vocabulary = vocabulary
        self._random = rng
        self._firsts: Iterator[str] | None = None
        self._claimed: set[tuple[int, ...]] = set()
        self._first_ids: dict[str, int] = {}
        self.first_tokens_unique = True

    @cached_property
    def words(self) -> list[str]:
        """Alphabetic words of the vocabulary in random order."""
        size = self._vocabulary.size
        ids = self._random.sample(range(size), min(size, MAX_VOCAB_SCANNED))
        words = {text: None for i in ids if _WORD.fullmatch(text := self._vocabulary.token_text(i).strip())}
        return list(words) if len(words) >= MIN_WORDS else [*words, *_SYLLABLES]

    @cached_property
    def _fillers(self) -> list[str]:
        """Pieces that add exactly one token when they follow other words."""
        encode, base = self._vocabulary.encode_plain, self.words[0]
        num_base = len(encode(base))
        fits = (f" {w}" for w in self.words if len(encode(f"{base} {w}")) == num_base + 1)
        found = [piece for piece, _ in zip(fits, range(MAX_FILLER_WORDS))]
        return found or [f" {w}" for w in self.words]

    def fillers(self, count: int, rng: random.Random | None = None) -> list[str]:
        """Random pieces of one token each, as far as the tokenizer allows."""
        return (rng or self._random).choices(self._fillers, k=count)

    def first(self) -> str:
        """A word to begin a prompt with: another one each time, until all of the vocabulary were used."""
        if self._firsts is not None and (word := next(self._firsts, None)) is not None:
            return word
        if self._firsts is not None:
            self.first_tokens_unique = False  # one round of the vocabulary is used up; from here pairs must differ
        self._firsts = iter(self._random.sample(self.words, len(self.words)))
        return next(self._firsts)

    def first_id(self, word: str) -> int:
        """The word's first token; kept, for encoding a word at a time costs more than sending the request."""
        if word not in self._first_ids:
            self._first_ids[word] = self._vocabulary.encode_plain(word)[0]
        return self._first_ids[word]

    def claim(self, content: Sequence[int]) -> bool:
        """Marks the beginning of a content as used; False when another one began so."""
        key = tuple(content[:1] if self.first_tokens_unique else content[:2])
        if key in self._claimed:
            return False
        self._claimed.add(key)
        if self.first_tokens_unique:
            self._claimed.add(tuple(content[:2]))
        return True
