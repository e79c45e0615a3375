"""What each token is worth in bytes, worked out from the decoder that tokenizer.json declares.

Knowing bytes per token, rather than asking for the text of a growing list, makes incremental decoding exact and
linear. Understood are the decoders of the byte-level and SentencePiece-style vocabularies: ByteLevel; Metaspace; and
sequences of Replace, ByteFallback, Fuse, Strip, Metaspace and ByteLevel (the `tokenizers` library defines them).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from pelton.errors import CheckpointError

Step = Callable[[str], "str | bytes"]
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_of_char() -> dict[str, int]:
    """The printable stand-in of each byte in byte-level vocabularies (Radford et al. 2019, GPT-2), inverted."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}


_BYTE_OF_CHAR = _byte_of_char()


def _byte_level(token: str) -> bytes:
    try:
        return bytes([_BYTE_OF_CHAR[char] for char in token])
    except KeyError:  # an added token, written as plain text
        return token.encode()


def _byte_fallback(token: str) -> str | bytes:
    match = _BYTE_TOKEN.fullmatch(token)
    return bytes([int(match[1], 16)]) if match else token


class Pieces(dict[int, bytes]):
    """Token id -> the bytes it adds to the text; filled as ids are asked for, unknown ids being worth nothing.

    The first token of a text may be worth less: see `first`.

    Args:
        decoder: the "decoder" entry of tokenizer.json.
        token_of: token id -> token as the vocabulary writes it, or None.

    Raises:
        CheckpointError: the decoder is of a kind that is not understood.
    """

    def __init__(self, decoder: dict[str, Any] | None, token_of: Callable[[int], str | None]):
        self._token_of = token_of
        self._steps: list[Step] = []
        self._first_steps: list[Step] = []
        self.strip_first = b""
        """Byte that is dropped from the start of a whole text, as often as `strip_count` says."""
        self.strip_count = 0
        self._is_fused = False
        if decoder is None:
            self._add_both(lambda token: " " + token, lambda token: token)
        else:
            for part in decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]:
                self._add_part(part)

    def __missing__(self, token_id: int) -> bytes:
        piece = self[token_id] = self._run(self._steps, token_id)
        return piece

    def is_known(self, token_id: int) -> bool:
        return token_id >= 0 and self._token_of(token_id) is not None

    def first(self, token_id: int) -> bytes:
        """What the token is worth as the first of a text, before `strip_first`."""
        return self._run(self._first_steps, token_id)

    def _run(self, steps: list[Step], token_id: int) -> bytes:
        if not self.is_known(token_id):
            return b""
        value: str | bytes = self._token_of(token_id)
        for step in steps:
            if isinstance(value, bytes):
                break
            value = step(value)
        return value if isinstance(value, bytes) else value.encode()

    def _add_both(self, step: Step, first: Step) -> None:
        self._steps.append(step)
        self._first_steps.append(first)

    def _add_part(self, part: dict[str, Any]) -> None:
        kind = part["type"]
        if kind == "ByteLevel":
            self._add_both(_byte_level, _byte_level)
        elif kind == "ByteFallback":
            self._add_both(_byte_fallback, _byte_fallback)
        elif kind == "Fuse":
            self._is_fused = True
        elif kind == "Replace" and "String" in part["pattern"]:
            old, new = part["pattern"]["String"], part["content"]
            self._add_both(lambda token: token.replace(old, new), lambda token: token.replace(old, new))
        elif kind == "Metaspace":
            mark = part["replacement"]
            lead = " " if part.get("prepend_scheme", "always") == "never" else ""
            self._add_both(lambda token: token.replace(mark, " "), lambda token: token.replace(mark, lead))
        elif kind == "Strip" and self._is_fused and part["stop"] == 0:
            self.strip_first, self.strip_count = part["content"].encode(), part["start"]
        elif kind == "Strip" and not self._is_fused:
            self._add_strip(part["content"], part["start"], part["stop"])
        else:
            raise CheckpointError(f"tokenizer.json: decoder {kind!r} ({part}) is not supported; known are ByteLevel, "
                                  "Metaspace and sequences of Replace, ByteFallback, Fuse and Strip")

    def _add_strip(self, char: str, start: int, stop: int) -> None:
        def strip(token: str) -> str:
            num_start = min(start, len(token) - len(token.lstrip(char)))
            token = token[num_start:]
            num_stop = min(stop, len(token) - len(token.rstrip(char)))
            return token[:len(token) - num_stop]

        self._add_both(strip, strip)
