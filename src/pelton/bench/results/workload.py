"""What was asked for."""

from __future__ import annotations

from typing import Literal

from pelton.bench.results.load import LoadSpec
from pelton.bench.results.record import Record


class PromptSpec(Record, kw_only=True):
    """What the prompts of a run are made of."""

    source: Literal["synthetic", "text", "data", "repeat"] = "synthetic"
    """synthetic: random words of the tokenizer's vocabulary; text: stretches of a file; data: a data set's prompts;
    repeat: the same text in every prompt."""
    file: str | None = None
    """Name of the file, without its directory."""
    sha256: str | None = None
    """Of the file."""
    is_unique: bool = True
    """Whether prompts were made unlike from their first token, but for what they were asked to share."""
    shared_prefix_tokens: int = 0
    """Tokens of content with which prompts of a cell begin alike."""
    num_prefixes: int = 1
    """Different beginnings among them."""


SYNTHETIC = PromptSpec()


class SessionSpec(Record):
    """What each conversation is like."""

    num_turns: int
    turn_tokens: int
    """Tokens of text that the user adds in each turn after the first."""
    think_time_s: float
    """Mean of the exponential pause between an answer and the next turn; 0 for none."""


class Workload(Record, kw_only=True):
    """What was asked for."""

    loads: list[LoadSpec]
    prompt_tokens: list[str]
    """As they were asked for: 128, 100-200 (uniform), 512~64 (normal) or data; a trace has its own."""
    output_tokens: list[str]
    """Likewise."""
    num_warmup: int | None
    """Unmeasured requests of each cell; none: as many as the load has in flight at first."""
    num_trials: int = 1
    temperature: float
    fixed_output: bool
    seed: int
    request_timeout_s: float
    duration_budget_s: float | None
    prompts: str
    """How the prompts were made, in words."""
    prompt_spec: PromptSpec = SYNTHETIC
    session: SessionSpec | None = None
    """Conversations; none for single requests."""
    cancellation_delay_s: float | None = None
    """Cancelled requests are given up within so long; none: after a random number of chunks."""
    first_tokens_unique: bool
    """Whether no two prompts of the run share their first content token."""
    trial_first_tokens_unique: bool | None = None
    """Whether no two prompts of the same trial of a cell do; none: not known."""
