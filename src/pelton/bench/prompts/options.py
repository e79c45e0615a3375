"""Options of the prompts: where their texts come from, and what they share."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from pelton.bench.load.options import MOST_TOKENS, require
from pelton.bench.prompts.lengths import WANT, Lengths
from pelton.bench.prompts.source import Material, read_material
from pelton.bench.prompts.trial import Content
from pelton.bench.results import PromptSpec
from pelton.errors import ConfigError

SOURCES = {
    "synthetic": "synthetic: random words of the tokenizer's vocabulary",
    "text": "stretches of a text file from random places",
    "data": "the prompts of a data set",
    "repeat": "the same text in every prompt, over and over",
}


@dataclass(frozen=True, kw_only=True)
class PromptOptions:
    """What the requests hold."""

    prompt_text: str | None = None
    """Text file from which prompts are cut, instead of random words."""
    prompt_data: str | None = field(default=None, metadata={"aliases": ("--input-file",)})
    """Data set of prompts, instead of random words: ShareGPT (JSON or JSON lines), an OpenAI batch file, or lines with
    a prompt or messages. With prompt_tokens data they are sent as they are, else cut or lengthened to the size."""
    prompt_repeat_text: str | None = None
    """Text file whose text every prompt repeats, as careless benchmarks do: a prefix cache then answers. Sizes below
    the template's floor become the floor. The audit says so."""
    unique_prompts: bool = True
    """Begin each prompt of a text file or data set with a random word, so that no two begin alike."""
    shared_prefix_tokens: int = 0
    """Tokens of each prompt, after the template's beginning, that are the same as in others."""
    num_prefixes: int = field(default=1, metadata={"aliases": ("--num-prefix-prompts",)})
    """How many different shared prefixes the prompts of a cell begin with, by lot."""
    prompt_tokens_stddev: float = field(default=0.0, metadata={"aliases": ("--synthetic-input-tokens-stddev",)})
    """Standard deviation of normally distributed prompt sizes; the same as prompt_tokens MEAN~STDDEV."""
    output_tokens_stddev: float = 0.0
    """Standard deviation of normally distributed output lengths; the same as output_tokens MEAN~STDDEV."""

    def __post_init__(self) -> None:
        given = [name for name in ("prompt_text", "prompt_data", "prompt_repeat_text") if getattr(self, name)]
        require(len(given) <= 1, " and ".join(given), "both", "given one at a time")
        require(self.shared_prefix_tokens >= 0, "shared_prefix_tokens", self.shared_prefix_tokens, "0 or more")
        require(self.num_prefixes >= 1, "num_prefixes", self.num_prefixes, "at least 1")
        require(not self.shared_prefix_tokens or getattr(self, "trace", None) is None, "shared_prefix_tokens",
                self.shared_prefix_tokens, "0 with a trace, which says what is shared")
        for name in ("prompt_tokens", "output_tokens"):
            self._read_lengths(name, getattr(self, f"{name}_stddev"))
        lengths = [*self._lengths("prompt_tokens"), *self._lengths("output_tokens")]
        if self.prompt_data is None and any(length.kind == "data" for length in lengths):
            raise ConfigError("prompt_tokens and output_tokens can be data only where prompt_data names a data set")
        if any(length.kind == "data" for length in self._lengths("prompt_tokens")) or self.prompt_repeat_text:
            require(not self.shared_prefix_tokens, "shared_prefix_tokens", self.shared_prefix_tokens,
                    "0 where prompts are taken as they are or repeated")

    def _read_lengths(self, name: str, stddev: float) -> None:
        """Makes Lengths of what may be numbers and text, and applies the standard deviation."""
        require(0 <= stddev <= MOST_TOKENS, f"{name}_stddev", stddev, f"from 0 to {MOST_TOKENS:,}")
        value = getattr(self, name)
        values = value if isinstance(value, (tuple, list)) else (value,)
        require(len(values) >= 1, name, value, "at least one number")
        made = tuple(_length(name, v, stddev) for v in values)
        require(len(set(made)) == len(made), name, ",".join(map(str, made)), "a list without repeats")
        object.__setattr__(self, name, made if isinstance(value, (tuple, list)) else made[0])
        object.__setattr__(self, f"{name}_stddev", 0.0)

    def _lengths(self, name: str) -> tuple[Lengths, ...]:
        value = getattr(self, name)
        return (value,) if isinstance(value, Lengths) else value

    @cached_property
    def material(self) -> Material:
        """What the file that prompts are made of holds.

        Raises:
            ConfigError: it cannot be read or holds nothing.
        """
        return read_material(self.prompt_text or self.prompt_repeat_text, self.prompt_data)

    @property
    def takes_turns_of_data(self) -> bool:
        """Whether conversations are those of the data set, in whatever size."""
        return all(length.kind == "data" for length in self._lengths("prompt_tokens"))

    @property
    def prompt_spec(self) -> PromptSpec:
        """What the prompts are made of."""
        source = ("data" if self.prompt_data else "text" if self.prompt_text else
                  "repeat" if self.prompt_repeat_text else "synthetic")
        is_unique = source == "synthetic" or (self.unique_prompts and source != "repeat")
        file = self.prompt_data or self.prompt_text or self.prompt_repeat_text
        return PromptSpec(
            source=source, file=None if file is None else Path(file).name,
            sha256=self.material.sha256, is_unique=is_unique,
            shared_prefix_tokens=self.shared_prefix_tokens, num_prefixes=self.num_prefixes)

    def contents(self) -> list[CellContent]:
        """Every prompt size with every output length."""
        made = []
        for prompts, outputs in itertools.product(self._lengths("prompt_tokens"), self._lengths("output_tokens")):
            guess_in, guess_out = self.material.guess_tokens() if "data" in (prompts.kind, outputs.kind) else (0, 0)
            made.append(CellContent(prompts.mean or guess_in, outputs.mean or guess_out,
                                    Content(self.prompt_spec, prompts, outputs)))
        return made


@dataclass(frozen=True)
class CellContent:
    """The part of a cell's specification that is about its prompts."""

    prompt_tokens: int
    """The mean; where a data set decides a guess, for the time budget."""
    output_tokens: int
    content: Content

    @property
    def fields(self) -> dict[str, object]:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}


def describe(spec: PromptSpec) -> str:
    """How prompts were made, in words."""
    parts = [SOURCES[spec.source]]
    if spec.is_unique:
        parts.append("first content tokens never repeated")
    elif spec.source != "repeat":
        parts.append("beginnings may repeat")
    if spec.shared_prefix_tokens:
        parts.append(f"{spec.shared_prefix_tokens} tokens shared, {spec.num_prefixes} different")
    return ", ".join(parts)


def as_text(lengths: Lengths | Iterable[Lengths]) -> list[str]:
    """Lengths as they were asked for."""
    return [str(lengths)] if isinstance(lengths, Lengths) else [str(one) for one in lengths]


def _length(name: str, value: object, stddev: float) -> Lengths:
    try:
        made = value if isinstance(value, Lengths) else Lengths.parse(value)
    except ValueError as error:
        raise ConfigError(f"{name} {error}") from None
    if not stddev:
        return made
    require(made.kind == "fixed", f"{name}_stddev", stddev, f"left out where {name} is not {WANT.split(',')[0]}")
    return Lengths("normal", made.low, stddev=stddev)
