"""How many tokens prompts and answers are to have: one number, evenly or normally distributed, or as data has them."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from typing import Literal

import msgspec

from pelton.bench.load.options import MOST_TOKENS
from pelton.errors import ConfigError

WANT = "a number, LOW-HIGH (uniform), MEAN~STDDEV (normal) or data (as the data set has them)"
MAX_DRAWS = 1000

_UNIFORM = re.compile(r"(\d+)-(\d+)")
_NORMAL = re.compile(r"(\d+)(?:~|±|\+-)(\d+(?:\.\d+)?)")


class Lengths(msgspec.Struct, frozen=True):
    """A number of tokens, or a distribution of them."""

    kind: Literal["fixed", "uniform", "normal", "data"]
    low: int = 0
    """The number itself, the lower end, or the mean."""
    high: int = 0
    """The upper end, included (uniform)."""
    stddev: float = 0.0

    @classmethod
    def parse(cls, text: str | int) -> Lengths:
        """Reads 128, 100-200, 512~64 (also 512±64) or data.

        Raises:
            ValueError: it is none of these, or a length below 1 or above MOST_TOKENS.
        """
        text = str(text).strip()
        if text == "data":
            return cls("data")
        if text.isdecimal():
            made = cls("fixed", int(text))
        elif found := _UNIFORM.fullmatch(text):
            made = cls("uniform", int(found[1]), int(found[2]))
        elif found := _NORMAL.fullmatch(text):
            made = cls("normal", int(found[1]), stddev=float(found[2]))
        else:
            raise ValueError(f"must be {WANT}, got {text!r}")
        if made.low < 1 or (made.kind == "uniform" and made.high < made.low):
            raise ValueError(f"must be lengths of at least 1, LOW at most HIGH, got {text!r}")
        if max(made.low, made.high, made.stddev) > MOST_TOKENS:
            raise ValueError(f"must be lengths of at most {MOST_TOKENS:,}, got {text!r}")
        return made

    def __str__(self) -> str:
        return {"fixed": f"{self.low}", "uniform": f"{self.low}-{self.high}",
                "normal": f"{self.low}~{self.stddev:g}", "data": "data"}[self.kind]

    @property
    def mean(self) -> int | None:
        """None where a data set decides."""
        if self.kind == "data":
            return None
        return round((self.low + self.high) / 2) if self.kind == "uniform" else self.low

    def draws(self, rng: random.Random, *, least: int = 1) -> Iterator[int]:
        """Lengths without end; normal ones below `least` are drawn again. None for those of a data set.

        Raises:
            ConfigError: nearly all of the distribution lies below `least`.
        """
        while True:
            if self.kind == "normal":
                yield self._normal(rng, least)
            else:
                yield rng.randint(self.low, self.high) if self.kind == "uniform" else self.low

    def _normal(self, rng: random.Random, least: int) -> int:
        for _ in range(MAX_DRAWS):
            if (drawn := round(rng.gauss(self.low, self.stddev))) >= least:
                return drawn
        raise ConfigError(f"lengths {self}: nearly all are below {least}, the smallest that can be made")
