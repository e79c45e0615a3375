"""Token ids to text as they come: whole characters only, stop strings honoured. Knows no requests and no clocks."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pelton.tokenizer.stops import StopMatch, StopMatcher
from pelton.types import SamplingParams

if TYPE_CHECKING:
    from pelton.tokenizer.tokenizer import Tokenizer

_PROMPT_TAIL = 16
"""Prompt tokens looked at: enough to tell whether the text has begun and to hold the pieces of one character."""


class IncrementalDetokenizer:
    """Turns one completion's tokens into text deltas.

    The deltas joined are the text the output adds to the prompt: a leading space that a SentencePiece vocabulary puts
    on every word is kept when the prompt has text, and a character begun in the prompt's last bytes is given out when
    it is complete. Bytes that are no UTF-8 become U+FFFD as by `bytes.decode(errors="replace")`. Time is linear in the
    number of tokens.

    Args:
        tokenizer: supplies the bytes of each token.
        prompt_ids: the tokens before the output; empty for a text that begins here.
        sampling: stop, min_tokens, include_stop_str_in_output and skip_special_tokens are read.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int] = (), sampling: SamplingParams | None = None):
        sampling = sampling or SamplingParams()
        self._pieces = tokenizer.pieces
        self._skipped = tokenizer.special_ids if sampling.skip_special_tokens else frozenset()
        self._matcher = StopMatcher(sampling.stop) if sampling.stop else None
        self._min_tokens = sampling.min_tokens
        self._include_stop = sampling.include_stop_str_in_output
        self._undecoded = b""
        self._held = ""
        self._is_first = True
        self._num_to_strip = self._pieces.strip_count
        self.num_tokens = 0
        """Output tokens pushed so far."""
        self.num_chars = 0
        """Characters decoded so far, held ones included."""
        self._start_after(prompt_ids)

    def push(self, token_ids: Sequence[int]) -> tuple[str, StopMatch | None]:
        """Takes the next tokens.

        Returns:
            (text that became certain, the stop string that was met or None). With a match the text is cut before the
            stop string, or after it with include_stop_str_in_output, and nothing may be pushed any more.
        """
        if self._matcher is None:
            return self._decode(token_ids), None
        for token_id in token_ids:
            text = self._decode((token_id,))
            found = self._matcher.feed(text, accept=self.num_tokens >= self._min_tokens)
            self._held += text
            if found:
                stop, position = found
                end = len(self._held) - len(text) + position
                out = self._held[:end if self._include_stop else end - len(stop)]
                self._held = ""
                return out, StopMatch(stop, self.num_tokens)
        return self._release(self._matcher.num_held), None

    def flush(self) -> str:
        """The rest at the end of the output: text held back, and U+FFFD for a character that was never completed."""
        text = self._undecoded.decode("utf-8", "replace")
        self._undecoded = b""
        self.num_chars += len(text)
        self._held += text
        return self._release(0)

    def _release(self, num_held: int) -> str:
        end = len(self._held) - num_held
        text, self._held = self._held[:end], self._held[end:]
        return text

    def _decode(self, token_ids: Sequence[int]) -> str:
        self.num_tokens += len(token_ids)
        data = self._undecoded + self._bytes(token_ids)
        text, num_used = codecs.utf_8_decode(data, "replace", False)
        self._undecoded = data[num_used:]
        self.num_chars += len(text)
        return text

    def _bytes(self, token_ids: Sequence[int]) -> bytes:
        if self._skipped:
            token_ids = [t for t in token_ids if t not in self._skipped]
        if self._is_first or self._num_to_strip:
            return b"".join(map(self._first_bytes, token_ids))
        return b"".join(map(self._pieces.__getitem__, token_ids))

    def _first_bytes(self, token_id: int) -> bytes:
        """A token's bytes while the start of the text is not yet behind us."""
        piece = self._pieces.first(token_id) if self._is_first else self._pieces[token_id]
        if self._pieces.is_known(token_id):
            self._is_first = False
        while self._num_to_strip and piece.startswith(self._pieces.strip_first):
            piece = piece[len(self._pieces.strip_first):]
            self._num_to_strip -= 1
        if piece:
            self._num_to_strip = 0
        return piece

    def _start_after(self, prompt_ids: Sequence[int]) -> None:
        """Takes over the state at the end of the prompt."""
        if not prompt_ids:
            return
        tail = prompt_ids[-_PROMPT_TAIL:]
        if len(tail) < len(prompt_ids) and self._has_text(prompt_ids[:-_PROMPT_TAIL]):
            self._is_first, self._num_to_strip = False, 0
        self._decode(tail)
        self.num_tokens = self.num_chars = 0

    def _has_text(self, token_ids: Sequence[int]) -> bool:
        return any(t not in self._skipped and self._pieces[t] for t in token_ids)
