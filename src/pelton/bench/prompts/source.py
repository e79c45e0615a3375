"""Where the texts of prompts come from: random words, a text file, a data set, or one text for all of them.

A source drafts a text of about so many tokens; the factory brings it to its exact size.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pelton.bench.prompts.dataset import Entry, read_data_set
from pelton.bench.prompts.vocabulary import Vocabulary, flatten
from pelton.bench.prompts.words import Words, pieces_of
from pelton.errors import ConfigError

SAMPLE_PIECES = 2_000  # words of a text by which its tokens per word are estimated
CHARS_PER_TOKEN = 4  # of English, for guesses
SPARE = 1.05  # drafts are rather too long, for cutting changes no text


class Source(Protocol):
    """Texts for one trial."""

    is_unique: bool
    """Whether its prompts are to be unlike from their first token."""

    def draft(self, num_tokens: int, entry: int | None) -> list[str]:
        """Pieces of about so many tokens; `entry` names one of a data set."""
        ...


class SyntheticSource:
    """Random words of the tokenizer's vocabulary."""

    def __init__(self, words: Words) -> None:
        self.is_unique = True
        self._words = words

    def draft(self, num_tokens: int, entry: int | None) -> list[str]:
        return self._words.fillers(num_tokens)


class TextSource:
    """Stretches of a text file from random places; after its end it begins anew."""

    def __init__(self, text: LoadedText, vocabulary: Vocabulary, *, is_unique: bool, seed: str) -> None:
        self.is_unique = is_unique
        self._pieces = text.pieces
        self._tokens_per_piece = tokens_per_piece(text.pieces, vocabulary)
        self._random = random.Random(seed)

    def draft(self, num_tokens: int, entry: int | None) -> list[str]:
        start = self._random.randrange(len(self._pieces))
        return cycle_from(self._pieces, start, int(num_tokens / self._tokens_per_piece * SPARE) + 8)


class RepeatSource:
    """The same text in every prompt, over and over until it is long enough: what a benchmark should not send."""

    def __init__(self, text: LoadedText, vocabulary: Vocabulary) -> None:
        self.is_unique = False
        self._pieces = text.pieces
        self._tokens_per_piece = tokens_per_piece(text.pieces, vocabulary)

    def draft(self, num_tokens: int, entry: int | None) -> list[str]:
        return cycle_from(self._pieces, 0, int(num_tokens / self._tokens_per_piece * SPARE) + 8)


class DataSource:
    """The texts of a data set's entries, the conversation of each as one."""

    def __init__(self, entries: list[Entry], *, is_unique: bool) -> None:
        self.is_unique = is_unique
        self._entries = entries

    def draft(self, num_tokens: int, entry: int | None) -> list[str]:
        assert entry is not None
        return pieces_of(flatten(self._entries[entry].messages))


@dataclass(frozen=True)
class LoadedText:
    """A text file, as words with the white space before them."""

    pieces: list[str]


@dataclass(frozen=True)
class Material:
    """What the prompts of a run are made of, read before anything is measured."""

    text: LoadedText | None = None
    entries: list[Entry] | None = None
    sha256: str | None = None

    def guess_tokens(self) -> tuple[int, int]:
        """About how many tokens the data set's prompts and answers have on average, by their characters."""
        prompts = [len(flatten(e.messages)) for e in self.entries]
        answers = [e.output_tokens * CHARS_PER_TOKEN if e.output_tokens else len(e.answer or "") for e in self.entries]
        return tuple(max(round(sum(chars) / len(chars) / CHARS_PER_TOKEN), 1) for chars in (prompts, answers))


NO_MATERIAL = Material()


def read_material(text: str | None, data: str | None) -> Material:
    """Reads the text file or the data set.

    Raises:
        ConfigError: it cannot be read or holds nothing.
    """
    if data is not None:
        path = Path(data).expanduser()
        return Material(entries=read_data_set(path), sha256=_sha256(path))
    if text is None:
        return Material()
    path = Path(text).expanduser()
    try:
        pieces = pieces_of(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"text file {text!r} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not pieces:
        raise ConfigError(f"text file {text!r} holds no words")
    return Material(text=LoadedText(pieces), sha256=_sha256(path))


def cycle_from(pieces: list[str], start: int, count: int) -> list[str]:
    """So many pieces from a place on, from the beginning again after the last; a space where none stands before."""
    row = itertools.islice(itertools.cycle(pieces), start, start + count)
    return [piece if piece[:1].isspace() else f" {piece}" for piece in row]


def tokens_per_piece(pieces: list[str], vocabulary: Vocabulary) -> float:
    """Estimated from the beginning."""
    sample = pieces[:SAMPLE_PIECES]
    return max(len(vocabulary.encode_plain("".join(sample))) / len(sample), 0.5)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
