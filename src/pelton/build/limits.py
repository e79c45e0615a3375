"""What the limits of an engine come to for a model. Needs no torch, so that `pelton plan` can ask."""

from __future__ import annotations

from pelton.config import BuildConfig, ModelConfig
from pelton.errors import ConfigError
from pelton.ledger import resolve_max_seq_len
from pelton.manifest import Limits


def resolve_limits(options: BuildConfig, model: ModelConfig) -> Limits:
    """The limits that the options come to for a model.

    Raises:
        ConfigError: more than the model's context length, a prompt without room for one output token, or a step too
            small for one token of each sequence.
    """
    context = model.context_len
    max_seq_len = resolve_max_seq_len(model, options)
    if max_seq_len > context:
        raise ConfigError(f"max_seq_len must be at most the model's context of {context} tokens "
                          f"(max_position_embeddings, with rope scaling), got {max_seq_len}")
    if max_seq_len < 2:
        raise ConfigError(f"max_seq_len must be at least 2, one prompt and one output token, got {max_seq_len}")
    max_input_len = max_seq_len - 1 if options.max_input_len is None else options.max_input_len
    if max_input_len >= max_seq_len:
        raise ConfigError(f"max_input_len must be below max_seq_len ({max_seq_len}), which counts the output too, got "
                          f"{max_input_len}")
    if options.max_num_tokens < options.max_batch_size:
        raise ConfigError(f"max_num_tokens must be at least max_batch_size ({options.max_batch_size}), one token for "
                          f"each sequence of a step, got {options.max_num_tokens}")
    return Limits(max_batch_size=options.max_batch_size, max_seq_len=max_seq_len, max_input_len=max_input_len,
                  max_num_tokens=options.max_num_tokens, tokens_per_block=options.tokens_per_block)
