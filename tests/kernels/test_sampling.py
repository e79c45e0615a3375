"""The batched sampler against the reference, row by row, and what no sampler may do."""

import math

import numpy as np
import pytest
import torch
from helpers.sampling import CASES, assert_same_draw, make_columns, make_logits, make_rows

from pelton.kernels.sampling import cpu, reference
from pelton.kernels.sampling.reference import SamplingRow
from pelton.types import SamplingParams


@pytest.mark.parametrize("kind", ["normal", "tied", "bfloat16", "extreme", "all_equal"])
@pytest.mark.parametrize("case", CASES)
def test_agrees_with_reference(case, kind):
    # Fresh inputs each run: a failure prints its seed.
    seed = np.random.SeedSequence().entropy % 2**32
    print("seed", seed)
    rng = np.random.default_rng(seed)
    vocab_size = int(rng.integers(310, 420))
    rows = make_rows(CASES[case], vocab_size, 6, rng)
    logits = make_logits(kind, len(rows), vocab_size, torch.Generator().manual_seed(seed))
    drawn = cpu.sample(logits.clone(), make_columns(rows, vocab_size))
    for i, row in enumerate(rows):
        assert_same_draw(logits[i], row, int(drawn[i]))


@pytest.mark.parametrize("kind", ["normal", "tied"])
def test_wide_vocabulary_uses_wider_candidate_sets(kind):
    """Kept sets beyond the first candidates and beyond the second, exact ties at the cut included."""
    vocab_size = 6000
    params = [SamplingParams(top_k=255), SamplingParams(top_k=256), SamplingParams(top_k=257),
              SamplingParams(top_k=5000, temperature=9.0), SamplingParams(top_p=0.999, temperature=50.0),
              SamplingParams(min_p=0.01, temperature=2.0), SamplingParams(top_k=4500, top_p=0.99, temperature=60.0)]
    rows = [SamplingRow(params=p, prompt_ids=(1, 2), seed=i) for i, p in enumerate(params)]
    logits = make_logits(kind, len(rows), vocab_size, torch.Generator().manual_seed(5))
    drawn = cpu.sample(logits.clone(), make_columns(rows, vocab_size))
    for i, row in enumerate(rows):
        assert_same_draw(logits[i], row, int(drawn[i]))


def allowed(params, logits, num_seeds=200):
    """Tokens drawn over many seeds."""
    rows = [SamplingRow(params=params, seed=i) for i in range(num_seeds)]
    columns = make_columns(rows, len(logits))
    return set(cpu.sample(logits.expand(num_seeds, -1).clone(), columns).tolist())


@pytest.mark.parametrize(("params", "expected"), [
    (SamplingParams(top_p=0.5), {0, 1}),  # their mass is exactly what is wanted
    (SamplingParams(top_p=0.51), {0, 1, 2}),
    (SamplingParams(top_k=3), {0, 1, 2}),
    (SamplingParams(top_k=3, top_p=0.6), {0, 1}),  # 0.6 of what top_k kept
    (SamplingParams(min_p=1.0), {0, 1, 2, 3}),
    (SamplingParams(min_p=1.0, top_p=0.75), {0, 1, 2}),  # 0.75 of what min_p kept
    (SamplingParams(top_p=0.625), {0, 1, 2}),
])
def test_kept_sets_by_hand(params, expected):
    """Four equal tokens and eight that together weigh as much as one of them."""
    logits = torch.tensor([0.0] * 4 + [-math.log(8)] * 8)
    if params.min_p == 0:
        logits[4:] = -math.inf
    assert allowed(params, logits) == expected
    adjusted = reference.adjust(logits, SamplingRow(params=params))
    assert set(reference.kept_probs(adjusted, params).nonzero().squeeze(1).tolist()) == expected


def test_top_p_is_a_share_of_what_min_p_kept_in_a_wide_vocabulary():
    logits = torch.full((2000,), -3.0)
    logits[:10] = torch.linspace(1.0, 0.1, 10)
    params = SamplingParams(min_p=0.1, top_p=0.5)
    kept = reference.kept_probs(logits.double(), params).nonzero().squeeze(1).tolist()
    assert len(kept) == 4  # of all 2,000 tokens' mass, half would take many more
    assert allowed(params, logits) == set(kept)


def test_mixed_batch_draws_what_each_row_draws_alone():
    rng = np.random.default_rng(3)
    vocab_size = 1000
    rows = [make_rows(params, vocab_size, 1, rng)[0] for params in CASES.values()]
    logits = make_logits("normal", len(rows), vocab_size, torch.Generator().manual_seed(1))
    together = cpu.sample(logits.clone(), make_columns(rows, vocab_size)).tolist()
    alone = [int(cpu.sample(logits[i:i + 1].clone(), make_columns([row], vocab_size))) for i, row in enumerate(rows)]
    backwards = cpu.sample(logits.flip(0), make_columns(rows[::-1], vocab_size)).tolist()[::-1]
    assert together == alone == backwards


def test_draw_does_not_depend_on_vocabulary_padding():
    """A vocabulary padded with impossible tokens draws the same tokens from the same stream."""
    rows = [SamplingRow(params=SamplingParams(temperature=2.0), seed=i) for i in range(20)]
    logits = torch.randn(20, 501, generator=torch.Generator().manual_seed(2))
    padded = torch.cat((logits, torch.full((20, 38), -math.inf)), dim=1)
    assert cpu.sample(logits, make_columns(rows, 501)).tolist() == cpu.sample(padded, make_columns(rows, 539)).tolist()


def test_greedy_takes_lowest_id_of_ties():
    logits = torch.zeros(3, 40000)
    logits[0, [39999, 17, 20000]] = 5.0
    logits[1, [8, 7]] = 5.0
    rows = [SamplingRow(params=SamplingParams(temperature=0.0))] * 3
    assert cpu.sample(logits, make_columns(rows, 40000)).tolist() == [17, 7, 0]


def test_top_k_one_is_greedy_on_ties():
    logits = torch.zeros(50, 600)
    logits[:, [400, 33, 599]] = 2.0
    rows = [SamplingRow(params=SamplingParams(top_k=1), seed=i) for i in range(50)]
    assert cpu.sample(logits, make_columns(rows, 600)).tolist() == [33] * 50


def test_min_tokens_bans_end_ids_until_reached():
    logits = torch.zeros(1, 10)
    logits[0, 4] = 50.0
    params = SamplingParams(temperature=0.0, min_tokens=2)
    for output, expected in (((), 0), ((1,), 0), ((1, 1), 4)):
        row = SamplingRow(params=params, prompt_ids=(9,), output_ids=output, end_ids=(4,))
        assert reference.sample(logits[0], row) == expected
        assert cpu.sample(logits.clone(), make_columns([row], 10)).tolist() == [expected]


@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(top_k=3), SamplingParams(temperature=0.0)])
def test_banned_tokens_are_never_drawn(params):
    rows = [SamplingRow(params=params, seed=i, banned_ids=(0, 1, 2)) for i in range(64)]
    logits = torch.zeros(64, 6)
    logits[:, :3] = 30.0
    assert set(cpu.sample(logits, make_columns(rows, 6)).tolist()) <= {3, 4, 5}


@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(top_k=3), SamplingParams(top_p=0.5),
                                    SamplingParams(temperature=0.0)])
@pytest.mark.parametrize("bad", [math.nan, -math.inf, math.inf])
def test_unusable_logits_still_give_a_token_and_spare_the_neighbours(params, bad):
    rows = [SamplingRow(params=params, seed=i) for i in range(3)]
    logits = torch.randn(3, 700, generator=torch.Generator().manual_seed(4))
    expected = cpu.sample(logits.clone(), make_columns(rows, 700)).tolist()
    logits[1] = bad
    drawn = cpu.sample(logits, make_columns(rows, 700)).tolist()
    assert [drawn[0], drawn[2]] == [expected[0], expected[2]]
    assert 0 <= drawn[1] < 700


def test_penalties_by_hand():
    """Bias comes before the repetition penalty; frequency and presence see the output alone."""
    params = SamplingParams(temperature=0.0, repetition_penalty=2.0, frequency_penalty=0.5, presence_penalty=0.25,
                            logit_bias={0: 1.0})
    row = SamplingRow(params=params, prompt_ids=(0, 1), output_ids=(2, 2, 3))
    logits = torch.tensor([[3.0, -1.0, 4.0, -2.0, 0.5]])
    expected = [2.0, -2.0, 2.0 - 1.0 - 0.25, -4.0 - 0.5 - 0.25, 0.5]
    assert reference.adjust(logits[0], row).tolist() == expected
    cpu.adjust(logits, make_columns([row], 5))
    assert logits[0].tolist() == expected


@pytest.mark.parametrize("kind", ["normal", "tied", "bfloat16"])
def test_logprobs(kind):
    logits = make_logits(kind, 5, 900, torch.Generator().manual_seed(6))
    chosen = torch.tensor([0, 899, 17, 5, int(logits[4].argmax())])
    ids, values, ranks = cpu.logprobs(logits, chosen, 20)
    exact = torch.log_softmax(logits, dim=-1)
    torch.testing.assert_close(values, exact.gather(1, ids), rtol=1e-5, atol=1e-5)
    for i in range(5):
        entry = reference.logprobs(logits[i], int(chosen[i]), 20)
        assert entry.token_ids == ids[i].tolist()
        assert entry.rank == int(ranks[i])
        assert np.allclose(entry.logprobs, values[i], atol=1e-5)
    assert int(ranks[4]) == 1


def test_logprobs_without_top():
    logits = torch.randn(2, 30)
    ids, values, _ = cpu.logprobs(logits, torch.tensor([3, 4]), 0)
    assert ids.tolist() == [[3], [4]]
    assert values.shape == (2, 1)


@pytest.mark.parametrize("k", [0, 1, 5, 64, 99, 100, 300])
def test_likeliest_orders_ties_by_id(k):
    scores = torch.randint(-3, 3, (7, 100), generator=torch.Generator().manual_seed(k)).float()
    scores[3] = -math.inf
    values, ids = cpu.likeliest(scores, k)
    order = torch.sort(scores, descending=True, stable=True)
    assert ids.tolist() == order.indices[:, :k].tolist()
    assert values.tolist() == order.values[:, :k].tolist()
