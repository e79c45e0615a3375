"""One row at a time, slow and obvious: what every faster sampler must agree with.

The order of the steps is vLLM's (v1):

1. log-probabilities, if asked for, are those of the model's raw logits (vLLM's default, `raw_logprobs`);
2. logit_bias is added; banned tokens (bad words, end ids below min_tokens) become -inf;
3. penalties: repetition over prompt and output (Keskar et al. 2019), then frequency and presence over the output;
4. temperature 0: the likeliest token. Otherwise logits are divided by the temperature, and of the resulting
   distribution min_p, then top_k, then top_p (each renormalised over what the one before kept) drop tokens;
5. the draw: the largest probability / exponential variate, see `random`.

Wherever tokens tie, the lower id counts as the likelier one. top_k keeps exactly k tokens, so that top_k=1 is greedy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from pelton.kernels.sampling.random import exponentials, token_word
from pelton.types import SamplingParams, TokenLogprobs


@dataclass(frozen=True, kw_only=True)
class SamplingRow:
    """All that the choice of one token depends on, besides the logits."""

    params: SamplingParams
    prompt_ids: tuple[int, ...] = ()
    output_ids: tuple[int, ...] = ()
    seed: int = 0
    end_ids: tuple[int, ...] = ()
    """Banned while fewer than params.min_tokens output tokens exist."""
    banned_ids: tuple[int, ...] = ()

    @property
    def position(self) -> int:
        """Index in the sequence of the token being drawn."""
        return len(self.prompt_ids) + len(self.output_ids)


def sample(logits: torch.Tensor, row: SamplingRow) -> int:
    """Draws one token.

    Args:
        logits: [V], any float type; left as they are.
    """
    adjusted = adjust(logits, row)
    if row.params.is_greedy:
        return int(likeliest_first(adjusted)[0])
    probs = kept_probs(adjusted, row.params)
    words = np.array([token_word(row.seed, row.position, token) for token in range(len(probs))], dtype=np.uint64)
    scores = probs / exponentials(words).double()
    return int(likeliest_first(scores)[0])


def adjust(logits: torch.Tensor, row: SamplingRow) -> torch.Tensor:
    """Bias, bans and penalties. [V] -> [V] float64."""
    params = row.params
    out = logits.double().clone()
    for token, bias in (params.logit_bias or {}).items():
        out[token] += bias
    banned = list(row.banned_ids)
    if len(row.output_ids) < params.min_tokens:
        banned += row.end_ids
    for token in banned:
        out[token] = -math.inf
    for token in {*row.prompt_ids, *row.output_ids}:
        penalty = params.repetition_penalty
        out[token] = out[token] / penalty if out[token] > 0 else out[token] * penalty
    for token in set(row.output_ids):
        out[token] -= params.frequency_penalty * row.output_ids.count(token) + params.presence_penalty
    return out


def kept_probs(adjusted: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """Probabilities after temperature and truncation, in any scale. [V] -> [V] float64, dropped tokens 0."""
    order = likeliest_first(adjusted)
    # Subtracting the largest first keeps a tiny temperature from overflowing.
    probs = torch.exp((adjusted - adjusted[order[0]]) / params.temperature)
    probs = torch.where(probs >= params.min_p, probs, 0.0)
    if params.top_k > 0:
        probs[order[params.top_k:]] = 0.0
    if params.top_p < 1.0:
        wanted = params.top_p * probs.sum()
        mass = 0.0
        for token in order:
            if mass >= wanted:
                probs[token] = 0.0
            mass += probs[token]
    return probs


def likeliest_first(scores: torch.Tensor) -> torch.Tensor:
    """Token ids by falling score, equal ones by rising id. [V] -> [V] int64."""
    return torch.sort(scores, descending=True, stable=True).indices


def logprobs(logits: torch.Tensor, token_id: int, num_top: int) -> TokenLogprobs:
    """The chosen token and the `num_top` likeliest ones under softmax(logits).

    Args:
        logits: [V], raw: before bias, penalties and temperature.
    """
    values = torch.log_softmax(logits.double(), dim=-1)
    top = likeliest_first(values)[:num_top].tolist()
    token_ids = [token_id, *top]
    rank = 1 + int((logits > logits[token_id]).sum())
    return TokenLogprobs(token_ids=token_ids, logprobs=values[token_ids].tolist(), rank=rank)
