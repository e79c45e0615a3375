"""Words of a tokenizer's vocabulary: to begin prompts unlike each other, and to bring them to a size.

Pieces are words with the white space before them; a text is its pieces joined.
"""

from __future__ import annotations

import itertools
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
        trial_first_tokens_unique: no two of the same trial do.
    """

    def __init__(self, vocabulary: Vocabulary, rng: random.Random) -> None:
        self._vocabulary = vocabulary
        self._random = rng
        self._firsts: Iterator[str] | None = None
        self._claimed: set[tuple[int, ...]] = set()
        self._claimed_in_trial: set[int] = set()
        self._num_fresh: int | None = None  # words of this round that the trial has not begun with; none: all
        self._is_trial_spent = False
        self._first_ids: dict[str, int] = {}
        self.first_tokens_unique = self.trial_first_tokens_unique = True

    @cached_property
    def words(self) -> list[str]:
        """Alphabetic words of the vocabulary in random order."""
        size = self._vocabulary.size
        ids = self._random.sample(range(size), min(size, MAX_VOCAB_SCANNED))
        words = {text: None for i in ids if _WORD.fullmatch(text := self._vocabulary.token_text(i).strip())}
        return list(words) if len(words) >= MIN_WORDS else [*words, *_SYLLABLES]

    @cached_property
    def _filler_ids(self) -> dict[str, int]:
        """Pieces that add exactly one token when they follow other words, and that token."""
        encode, base = self._vocabulary.encode_plain, self.words[0]
        num_base = len(encode(base))
        encoded = ((f" {w}", encode(f"{base} {w}")) for w in self.words)
        fits = ((piece, ids[-1]) for piece, ids in encoded if len(ids) == num_base + 1)
        return dict(itertools.islice(fits, MAX_FILLER_WORDS))

    @cached_property
    def _fillers(self) -> list[str]:
        return list(self._filler_ids) or [f" {w}" for w in self.words]

    def fillers(self, count: int, rng: random.Random | None = None) -> list[str]:
        """Random pieces of one token each, as far as the tokenizer allows."""
        return (rng or self._random).choices(self._fillers, k=count)

    @cached_property
    def _tokens(self) -> list[int]:
        return list(self._filler_ids.values()) or [self.first_id(word) for word in self.words]

    def row(self, count: int) -> list[int]:
        """Tokens of random words, the first one's as `first` gives it; no text is encoded, which would cost more than
        sending it."""
        return [self.first_id(self.first()), *self._random.choices(self._tokens, k=count - 1)]

    def begin_trial(self) -> None:
        """From here the prompts of another trial begin."""
        self._claimed_in_trial.clear()
        self._num_fresh, self._is_trial_spent = None, False

    def first(self) -> str:
        """A word to begin a prompt with: another one each time, until all of the vocabulary were used."""
        word = None if self._firsts is None else next(self._firsts, None)
        if word is None:
            word = self._start_round()
        if self._num_fresh is not None:
            self._num_fresh -= 1
            if self._num_fresh < 0:
                self._is_trial_spent, self.trial_first_tokens_unique = True, False
        return word

    def _start_round(self) -> str:
        """All words again in another order, those first that the trial has not begun with."""
        words = self._random.sample(self.words, len(self.words))
        if self._firsts is not None:
            self.first_tokens_unique = False  # one round of the vocabulary is used up; from here pairs must differ
            fresh = [word for word in words if self.first_id(word) not in self._claimed_in_trial]
            used = [word for word in words if self.first_id(word) in self._claimed_in_trial]
            words, self._num_fresh = fresh + used, len(fresh)
        self._firsts = iter(words)
        return next(self._firsts)

    def first_id(self, word: str) -> int:
        """The word's first token; kept, for encoding a word at a time costs more than sending the request."""
        if word not in self._first_ids:
            self._first_ids[word] = self._vocabulary.encode_plain(word)[0]
        return self._first_ids[word]

    def claim(self, content: Sequence[int]) -> bool:
        """Marks the beginning of a content as used; False when another one began so."""
        if content[0] in self._claimed_in_trial and not self._is_trial_spent:
            return False
        key = tuple(content[:1] if self.first_tokens_unique else content[:2])
        if key in self._claimed:
            return False
        self._claimed.add(key)
        self._claimed_in_trial.add(content[0])
        if self.first_tokens_unique:
            self._claimed.add(tuple(content[:2]))
        return True
