"""The random stream: published vectors, one meaning on every array type, and the right frequencies."""

import math

import numpy as np
import pytest
import torch

from pelton.kernels.sampling import cpu, random
from pelton.kernels.sampling.columns import Columns

# Random123's kat_vectors, "philox4x32 R" with R = 7 and 10: rounds, counter, key, result.
VECTORS = [
    (7, "00000000 00000000 00000000 00000000", "00000000 00000000", "5f6fb709 0d893f64 4f121f81 4f730a48"),
    (7, "ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "5207ddc2 45165e59 4d8ee751 8c52f662"),
    (7, "243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "4dfccaba 190a87f0 c47362ba b6b5242a"),
    (10, "00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    (10, "ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (10, "243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words_of(text):
    return tuple(int(word, 16) for word in text.split())


@pytest.mark.parametrize("wrap", [int, lambda w: np.array([w], dtype=np.uint64), lambda w: torch.tensor([w])],
                         ids=["python", "numpy", "torch"])
@pytest.mark.parametrize(("rounds", "counter", "key", "expected"), VECTORS)
def test_philox_published_vectors(wrap, rounds, counter, key, expected):
    result = random.philox(tuple(map(wrap, words_of(counter))), tuple(map(wrap, words_of(key))), rounds)
    assert tuple(np.asarray(word).item() for word in result) == words_of(expected)


def test_array_forms_agree_with_the_definition():
    rng = np.random.default_rng()
    seeds = rng.integers(-2**63, 2**63 - 1, 5)
    positions = np.array([0, 1, 77, 131072, 2**31 - 1])
    vocab_size = 203
    whole = random.vocab_words(seeds, positions, vocab_size)
    ids = rng.integers(0, vocab_size, (5, 40))
    some = random.token_words(seeds, positions, ids)
    for row in range(5):
        expected = [random.token_word(int(seeds[row]), int(positions[row]), token) for token in range(vocab_size)]
        assert whole[row].tolist() == expected
        assert some[row].tolist() == [expected[token] for token in ids[row]]


def test_large_vocabulary_is_the_same_stream():
    """Chunk borders leave no trace, nor do rows that are evaluated together."""
    seeds, positions = np.array([5, -6, 7]), np.array([1, 2, 3])
    whole = random.vocab_words(seeds, positions, 151_936)
    ids = np.array([[0, 65_535, 65_536, 65_537, 131_071, 131_072, 151_935]] * 3)
    assert (np.take_along_axis(whole, ids, axis=1) == random.token_words(seeds, positions, ids)).all()
    small = random.vocab_words(seeds, positions, 1000)
    assert (small == whole[:, :1000]).all()


def test_exponentials_cover_the_range():
    words = np.array([0, 1, 2**31, 2**32 - 1], dtype=np.uint64)
    smallest, second, median, largest = random.exponentials(words).tolist()
    assert smallest == pytest.approx(2.0**-33, rel=1e-6)
    assert second == pytest.approx(3 * 2.0**-33, rel=1e-6)
    assert median == pytest.approx(math.log(2), rel=1e-6)
    assert largest == pytest.approx(24 * math.log(2), rel=1e-6)


def chi_square(counts, probs):
    expected = probs * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


def draw_many(logits, num_draws, *, by, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """Frequencies over consecutive positions of one sequence, or over one position of many seeds."""
    one = np.ones(num_draws)
    steps = np.arange(num_draws)
    columns = Columns(temperature=np.full(num_draws, temperature, np.float32),
                      top_k=np.full(num_draws, top_k, np.int32), top_p=one * top_p, min_p=one * min_p,
                      repetition=one, frequency=one * 0, presence=one * 0,
                      seed=steps if by == "seed" else np.full(num_draws, 1234),
                      position=steps if by == "position" else np.full(num_draws, 60))
    drawn = cpu.sample(logits.expand(num_draws, -1).clone(), columns)
    return np.bincount(drawn.numpy(), minlength=logits.shape[0])


# 99.9 % points of chi-square with 19, 7, ... degrees of freedom; the streams are fixed, so the outcome is too.
LIMIT_99_9 = {3: 16.27, 7: 24.32, 19: 43.82}


@pytest.mark.parametrize("by", ["seed", "position"])
def test_frequencies_follow_the_distribution(by):
    logits = torch.linspace(-1.5, 2.0, 20)
    counts = draw_many(logits, 20_000, by=by, temperature=1.3)
    probs = torch.softmax(logits.double() / 1.3, dim=-1).numpy()
    assert chi_square(counts, probs) < LIMIT_99_9[19]


@pytest.mark.parametrize("by", ["seed", "position"])
def test_frequencies_after_truncation(by):
    logits = torch.tensor([2.0, -1.0, 1.5, 0.0, 1.0, -3.0, 0.5, -0.5, 1.2, 0.8])
    counts = draw_many(logits, 20_000, by=by, top_k=8)
    probs = torch.softmax(logits.double(), dim=-1).numpy()
    kept = np.argsort(-probs)[:8]
    assert counts.sum() == counts[kept].sum()
    assert chi_square(counts[kept], probs[kept] / probs[kept].sum()) < LIMIT_99_9[7]


def test_neighbouring_tokens_are_independent():
    """Tokens of one Philox block, and equal tokens at neighbouring positions, win independently."""
    counts = np.zeros((2, 2))
    ids = np.array([[0, 1, 2, 3]]).repeat(20_000, axis=0)
    words = random.token_words(np.full(20_000, 9), np.arange(20_000), ids) < 2**31
    np.add.at(counts, (words[:, 0].astype(int), words[:, 1].astype(int)), 1)
    assert chi_square(counts.ravel(), np.full(4, 0.25)) < LIMIT_99_9[3]
    counts[:] = 0
    np.add.at(counts, (words[:-1, 2].astype(int), words[1:, 2].astype(int)), 1)
    assert chi_square(counts.ravel(), np.full(4, 0.25)) < LIMIT_99_9[3]
