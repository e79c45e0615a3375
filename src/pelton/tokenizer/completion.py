"""One completion's text and end, from the engine's news of it. Shared by the server and `LLM`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pelton.tokenizer.detokenizer import IncrementalDetokenizer
from pelton.types import FinishReason, Output, SamplingParams

if TYPE_CHECKING:
    from pelton.tokenizer.tokenizer import Tokenizer


@dataclass(slots=True)
class CompletionNews:
    """What one Output added to a completion."""

    text: str
    token_ids: list[int]
    """The output's tokens, less those after a stop string."""
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    is_early_stop: bool = False
    """A stop string ended it before the engine knew: the engine must be told with `finish`."""


class CompletionText:
    """Follows one completion from its first token to its end.

    Args:
        prompt_ids: the request's prompt.
        sampling: its parameters; with detokenize=False there is no text.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int], sampling: SamplingParams):
        self._detokenizer = IncrementalDetokenizer(tokenizer, prompt_ids, sampling) if sampling.detokenize else None
        self._include_stop = sampling.include_stop_str_in_output
        self.num_tokens = 0
        """Output tokens that count, the one that ended it included."""

    def push(self, output: Output) -> CompletionNews:
        """Takes in the engine's next news; none may follow one with a finish_reason."""
        token_ids = output.token_ids
        news = CompletionNews("", token_ids, output.finish_reason, output.stop_reason)
        if self._detokenizer is not None:
            # The token that ended it (end of sequence, a stop id) is counted but has no part in the text.
            is_ended_by_token = output.finish_reason == "stop" and not self._include_stop
            news.text, match = self._detokenizer.push(token_ids[:-1] if is_ended_by_token else token_ids)
            if match is not None:
                news.is_early_stop = output.finish_reason is None
                news.token_ids = token_ids[:match.num_tokens - self.num_tokens]
                news.finish_reason, news.stop_reason = "stop", match.stop
            elif output.finish_reason is not None:
                news.text += self._detokenizer.flush()
        self.num_tokens += len(news.token_ids)
        return news
