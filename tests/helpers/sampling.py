"""Rows to draw for with every sampling parameter, and what draw the reference allows."""

from __future__ import annotations

import msgspec
import numpy as np
import torch

from pelton.kernels.sampling import reference
from pelton.kernels.sampling.columns import Columns
from pelton.kernels.sampling.random import exponentials, token_word
from pelton.kernels.sampling.reference import SamplingRow
from pelton.types import SamplingParams

CASES = {
    "greedy": SamplingParams(temperature=0.0),
    "plain": SamplingParams(),
    "hot": SamplingParams(temperature=3.0),
    "cold": SamplingParams(temperature=0.05),
    "nearly_zero": SamplingParams(temperature=1e-40),
    "top_k": SamplingParams(top_k=7),
    "top_k_wide": SamplingParams(top_k=300, temperature=2.0),
    "top_k_all": SamplingParams(top_k=2**31 - 1),
    "top_p": SamplingParams(top_p=0.8),
    "top_p_flat": SamplingParams(top_p=0.97, temperature=20.0),
    "top_p_tiny": SamplingParams(top_p=1e-6),
    "min_p": SamplingParams(min_p=0.05),
    "min_p_one": SamplingParams(min_p=1.0),
    "min_p_flat": SamplingParams(min_p=0.3, temperature=20.0),
    "top_k_top_p": SamplingParams(top_k=40, top_p=0.7),
    "top_k_top_p_wide": SamplingParams(top_k=290, top_p=0.95, temperature=30.0),
    "all_three": SamplingParams(top_k=50, top_p=0.9, min_p=0.02, temperature=1.5),
    "min_p_top_p_flat": SamplingParams(top_p=0.9, min_p=0.2, temperature=15.0),
    "repetition": SamplingParams(temperature=0.0, repetition_penalty=1.8),
    "penalties": SamplingParams(presence_penalty=1.2, frequency_penalty=0.7, repetition_penalty=0.6),
    "bonus": SamplingParams(presence_penalty=-2.0, frequency_penalty=-1.0, top_k=3),
    "bias": SamplingParams(temperature=0.0, logit_bias={3: 100.0, 4: -100.0}),
    "bias_penalties": SamplingParams(logit_bias={1: 9.5, 2: 9.5}, repetition_penalty=2.0, top_p=0.9),
    "min_tokens": SamplingParams(min_tokens=4),
    "min_tokens_reached": SamplingParams(min_tokens=2),
}


def make_columns(rows: list[SamplingRow], vocab_size: int) -> Columns:
    params = [row.params for row in rows]

    def column(name, dtype):
        return np.array([getattr(p, name) for p in params], dtype=dtype)

    columns = Columns(
        temperature=column("temperature", np.float32), top_k=column("top_k", np.int32),
        top_p=column("top_p", np.float64), min_p=column("min_p", np.float64),
        repetition=column("repetition_penalty", np.float32), frequency=column("frequency_penalty", np.float32),
        presence=column("presence_penalty", np.float32), seed=np.array([row.seed for row in rows], dtype=np.int64),
        position=np.array([row.position for row in rows], dtype=np.int64))
    for i, row in enumerate(rows):
        if row.params.needs_counts:
            counts = torch.zeros(vocab_size, dtype=torch.int32)
            counts[list(set(row.prompt_ids))] = 1
            for token in row.output_ids:
                counts[token] += 2
            columns.counts[i] = counts
        if row.params.logit_bias:
            ids, values = zip(*row.params.logit_bias.items())
            columns.bias.append((i, torch.tensor(ids), torch.tensor(values)))
        banned = list(row.banned_ids)
        if len(row.output_ids) < row.params.min_tokens:
            banned += row.end_ids
        if banned:
            columns.banned.append((i, torch.tensor(banned)))
    return columns


def make_rows(params: SamplingParams, vocab_size: int, num_rows: int, rng: np.random.Generator) -> list[SamplingRow]:
    def ids(count):
        return tuple(rng.integers(0, vocab_size, count).tolist())

    return [SamplingRow(params=params, prompt_ids=ids(5 + i), output_ids=ids(3) * 2 if i % 2 else ids(i % 5),
                        seed=int(rng.integers(-2**63, 2**63 - 1)), end_ids=ids(2), banned_ids=ids(3) if i % 3 else ())
            for i in range(num_rows)]


def make_logits(kind: str, num_rows: int, vocab_size: int, generator: torch.Generator) -> torch.Tensor:
    logits = torch.randn(num_rows, vocab_size, generator=generator)
    if kind == "tied":  # a handful of values
        return (logits * 2).round()
    if kind == "bfloat16":
        return (logits * 4 + 10).bfloat16().float()
    if kind == "extreme":
        return logits * torch.tensor([1e-6, 1.0, 1e4, 1e30, 3e37, 50.0] * num_rows)[:num_rows, None]
    if kind == "all_equal":
        return torch.full((num_rows, vocab_size), -7.25)
    return logits * 3


def assert_same_draw(logits: torch.Tensor, row: SamplingRow, token: int) -> None:
    """The token is the reference's, or would be but for float32: a threshold or a score that near it cannot tell."""
    expected = reference.sample(logits, row)
    if token == expected:
        return
    assert not row.params.is_greedy, f"greedy drew {token}, not {expected}"
    adjusted = reference.adjust(logits, row)
    words = np.array([[token_word(row.seed, row.position, i) for i in range(len(logits))]], dtype=np.uint64)
    noise = exponentials(words)[0].double()
    loose, tight = (reference.kept_probs(adjusted, shifted(row.params, by)) / noise for by in (-1e-6, 1e-6))
    assert loose[token] > 0, f"drew {token}, not {expected}: it should have been dropped"
    assert loose[token] >= tight.max() * (1 - 1e-4), f"drew {token}, not {expected}"


def shifted(params: SamplingParams, by: float) -> SamplingParams:
    """Keeps a little more (by < 0) or less."""
    return msgspec.structs.replace(params, min_p=min(1.0, params.min_p * (1 + by)),
                                   top_p=min(1.0, params.top_p * (1 - by)))
