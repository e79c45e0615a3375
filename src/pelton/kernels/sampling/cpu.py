"""The sampler for CPUs: the reference's semantics over a batch, each row paying only for what it asks for.

Greedy rows cost one argmax. Rows that truncate look at their 256 likeliest tokens, and sort their scores only if the
kept set might reach further. Rows that sample from everything evaluate the random stream over the vocabulary. What a
row draws does not depend on the other rows.
"""

from __future__ import annotations

import numpy as np
import torch

from pelton.kernels.sampling.columns import Columns
from pelton.kernels.sampling.random import exponentials, token_words, vocab_words

_NUM_CANDIDATES = 256
_SMALLEST_TEMPERATURE = 1e-30  # in float32 still positive; below it only exact ties are left to draw from
_CHUNK_LOGITS = 2**18  # elements of a pass over the vocabulary: temporaries stay in the cache


def sample(logits: torch.Tensor, columns: Columns) -> torch.Tensor:
    """Draws one token per row.

    Args:
        logits: [R, V] float32; changed in place where `columns.is_adjusted`.

    Returns:
        [R] int64.
    """
    if columns.is_adjusted:
        adjust(logits, columns)
    if columns.is_greedy:
        return logits.argmax(dim=-1)
    vocab_size = logits.shape[1]
    is_random = columns.temperature > 0
    is_truncated = columns.truncates(vocab_size)
    tokens = torch.empty(logits.shape[0], dtype=torch.int64)
    for rows, draw in ((~is_random, _draw_greedy), (is_random & ~is_truncated, _draw_from_all),
                       (is_random & is_truncated, _draw_truncated)):
        index = np.flatnonzero(rows)
        if len(index):
            tokens[index] = draw(logits, columns, index)
    return tokens


def adjust(logits: torch.Tensor, columns: Columns) -> None:
    """Bias, bans and penalties, in place. logits: [R, V] float32."""
    for row, token_ids, values in columns.bias:
        logits[row].index_add_(0, token_ids, values)
    for row, token_ids in columns.banned:
        logits[row].index_fill_(0, token_ids, -torch.inf)
    for row, counts in columns.counts.items():
        seen = counts.nonzero().squeeze(1)
        scores = logits[row, seen]
        num_output = counts[seen] >> 1
        repetition = float(columns.repetition[row])
        scores = torch.where(scores > 0, scores / repetition, scores * repetition)
        scores -= float(columns.frequency[row]) * num_output + float(columns.presence[row]) * (num_output > 0)
        logits[row, seen] = scores


def logprobs(logits: torch.Tensor, token_ids: torch.Tensor, num_top: int
             ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores of chosen tokens and of the likeliest ones.

    Args:
        logits: [R, V] float32, raw.
        token_ids: [R] int64, the chosen ones.

    Returns:
        ids [R, 1 + num_top] int64 (the chosen one first), their log-probabilities (float32), ranks [R] int64 of the
        chosen ones (1 + the number of likelier tokens).
    """
    chosen = logits.gather(1, token_ids[:, None])
    ranks = (logits > chosen).sum(dim=-1) + 1
    values, ids = likeliest(logits, num_top)
    values = torch.cat((chosen, values), dim=1) - logits.logsumexp(dim=-1, keepdim=True)
    return torch.cat((token_ids[:, None], ids), dim=1), values, ranks


def likeliest(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest scores by falling score, equal ones by rising id; torch.topk leaves the choice among ties open.

    Args:
        scores: [R, V].

    Returns:
        (scores, ids), each [R, min(k, V)].
    """
    vocab_size = scores.shape[1]
    if k >= vocab_size:
        return scores.sort(dim=-1, descending=True, stable=True)
    values, ids = scores.topk(k + 1, dim=-1)
    cut_ties = (values[:, k - 1] == values[:, k]) if k else torch.zeros(0, dtype=torch.bool)
    values, ids = values[:, :k], ids[:, :k]
    for row in cut_ties.nonzero().squeeze(1).tolist():
        smallest = values[row, -1]
        is_tied = values[row] == smallest
        ids[row, is_tied] = (scores[row] == smallest).nonzero().squeeze(1)[:int(is_tied.sum())]
    if (values[:, 1:] == values[:, :-1]).any():
        ids, by_id = ids.sort(dim=-1)
        values, by_score = values.gather(1, by_id).sort(dim=-1, descending=True, stable=True)
        ids = ids.gather(1, by_score)
    return values, ids


def _draw_greedy(logits: torch.Tensor, columns: Columns, rows: np.ndarray) -> torch.Tensor:
    return logits.argmax(dim=-1)[rows]


def _draw_from_all(logits: torch.Tensor, columns: Columns, rows: np.ndarray) -> torch.Tensor:
    """rows: [r] -> [r] int64."""
    tokens = []
    for chunk in _chunks(rows, logits.shape[1]):
        probs = _probs(logits, columns, chunk)
        words = vocab_words(columns.seed[chunk], columns.position[chunk], logits.shape[1])
        tokens.append(probs.div_(exponentials(words)).argmax(dim=-1))
    return torch.cat(tokens)


def _draw_truncated(logits: torch.Tensor, columns: Columns, rows: np.ndarray) -> torch.Tensor:
    """rows: [r] -> [r] int64."""
    top_k, top_p, min_p = columns.top_k[rows], columns.top_p[rows], columns.min_p[rows]
    vocab_size = logits.shape[1]
    top_k = np.where((top_k > 0) & (top_k < vocab_size), top_k, vocab_size)
    # With top_k the candidates hold all the mass that top_p is a share of.
    needs_total = (top_p < 1) & (top_k == vocab_size)
    total = np.zeros(len(rows))
    total[needs_total] = _total_mass(logits, columns, rows[needs_total])
    num_candidates = min(_NUM_CANDIDATES, vocab_size)
    values, ids = likeliest(logits[rows], num_candidates)  # [r, C]
    probs = _tempered(values, values[:, :1], columns.temperature[rows]).double().numpy()
    num_kept, is_sure = _count_kept(probs, top_k, top_p, min_p, total, needs_total)
    tokens = np.empty(len(rows), dtype=np.int64)
    tokens[is_sure] = _draw_from_kept(probs[is_sure], ids.numpy()[is_sure], num_kept[is_sure],
                                      columns.seed[rows[is_sure]], columns.position[rows[is_sure]])
    for i in np.flatnonzero(~is_sure):
        tokens[i] = _draw_sorted(logits, columns, rows[i:i + 1], top_k[i:i + 1])
    return torch.from_numpy(tokens)


def _count_kept(probs: np.ndarray, top_k: np.ndarray, top_p: np.ndarray, min_p: np.ndarray, total: np.ndarray,
                needs_total: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many of the C likeliest tokens stay, and whether that is sure without a look at the others.

    Args:
        probs: [t, C] float64, falling, scaled to 1 for the likeliest.
        total: [t] mass after min_p in the same scale, where `needs_total`; elsewhere it is that of the candidates.

    Returns:
        [t] int64 and [t] bool.
    """
    num_candidates = probs.shape[1]
    num_kept = np.maximum(np.minimum((probs >= min_p[:, None]).sum(axis=1), top_k), 1)
    is_sure = (num_kept < num_candidates) | (top_k <= num_candidates)
    has_top_p = top_p < 1
    if has_top_p.any():
        mass = np.cumsum(probs, axis=1)
        within = np.take_along_axis(mass, num_kept[:, None] - 1, axis=1)[:, 0]
        wanted = np.where(has_top_p, top_p * np.where(needs_total, total, within), np.inf)
        # A token stays while the mass of the likelier ones is short of what is wanted; the first always does.
        num_kept = np.minimum(num_kept, (mass[:, :-1] < wanted[:, None]).sum(axis=1) + 1)
        is_sure |= needs_total & (num_kept < num_candidates)
    return num_kept, is_sure


def _draw_from_kept(probs: np.ndarray, ids: np.ndarray, num_kept: np.ndarray, seeds: np.ndarray,
                    positions: np.ndarray) -> np.ndarray:
    """probs, ids: [t, C], likeliest first -> [t] int64."""
    if not len(ids):
        return np.empty(0, dtype=np.int64)
    width = int(num_kept.max())
    ids = ids[:, :width]
    scores = probs[:, :width] / exponentials(token_words(seeds, positions, ids)).numpy()
    scores[np.arange(width)[None, :] >= num_kept[:, None]] = -1.0
    return np.take_along_axis(ids, scores.argmax(axis=1)[:, None], axis=1)[:, 0]


def _draw_sorted(logits: torch.Tensor, columns: Columns, row: np.ndarray, top_k: np.ndarray) -> int:
    """One row whose kept set may be large: sort the scores alone, find the cut, draw from all above it.

    row, top_k: [1]; top_k is the vocabulary's size where all are kept.
    """
    scores = logits[row].numpy()  # [1, V]
    falling = np.sort(scores, axis=1)[:, ::-1].copy()
    probs = _tempered(torch.from_numpy(falling), torch.from_numpy(falling[:, :1]), columns.temperature[row])
    num_kept, _ = _count_kept(probs.double().numpy(), top_k, columns.top_p[row], columns.min_p[row], np.zeros(1),
                              np.zeros(1, dtype=bool))
    falling, scores = falling[0, :int(num_kept[0])], scores[0]
    is_kept = scores > falling[-1]
    num_tied = len(falling) - int(is_kept.sum())
    is_kept[np.flatnonzero(scores == falling[-1])[:num_tied]] = True
    probs = _probs(logits, columns, row)[0].mul_(torch.from_numpy(is_kept))
    words = vocab_words(columns.seed[row], columns.position[row], len(scores))[0]
    return int(probs.div_(exponentials(words)).argmax())


def _total_mass(logits: torch.Tensor, columns: Columns, rows: np.ndarray) -> np.ndarray:
    """Mass of what min_p keeps, in the scale where the likeliest token has 1. rows: [r] -> [r] float64."""
    totals = [np.empty(0)]
    for chunk in _chunks(rows, logits.shape[1]):
        probs = _probs(logits, columns, chunk)
        min_p = torch.from_numpy(columns.min_p[chunk])[:, None]
        if min_p.any():
            probs.mul_(probs >= min_p)
        totals.append(probs.sum(dim=-1, dtype=torch.float64).numpy())
    return np.concatenate(totals)


def _probs(logits: torch.Tensor, columns: Columns, rows: np.ndarray) -> torch.Tensor:
    """Tempered probabilities of whole rows, scaled to 1 for the likeliest token. -> [r, V] float32."""
    chosen = logits[rows]
    return _tempered(chosen, chosen.amax(dim=-1, keepdim=True), columns.temperature[rows])


def _tempered(scores: torch.Tensor, largest: torch.Tensor, temperature: np.ndarray) -> torch.Tensor:
    """exp((scores - largest) / temperature). scores: [r, n], largest: [r, 1] -> [r, n], a new tensor."""
    divisor = torch.from_numpy(np.maximum(temperature, np.float32(_SMALLEST_TEMPERATURE)))[:, None]
    return (scores - largest).div_(divisor).exp_()


def _chunks(rows: np.ndarray, vocab_size: int) -> list[np.ndarray]:
    at_once = max(1, _CHUNK_LOGITS // vocab_size)
    return [rows[i:i + at_once] for i in range(0, len(rows), at_once)]
