"""The GPU's sampler against the reference, row by row; interpreted where there is no GPU."""

import math

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from helpers.sampling import CASES, assert_same_draw, make_columns, make_logits, make_rows
from helpers.triton_interpret import DEVICE

from pelton.kernels.sampling import reference
from pelton.kernels.sampling import triton as sampler
from pelton.kernels.sampling.random import exponentials as cpu_exponentials
from pelton.kernels.sampling.random import token_word
from pelton.kernels.sampling.reference import SamplingRow
from pelton.kernels.sampling.state import SlotParams
from pelton.kernels.sampling.triton_plan import NEAR, NO_WINDOW, WIDE
from pelton.kernels.sampling.triton_random import block_words, log2_exponentials
from pelton.types import SamplingParams


def draw(logits, rows):
    """Through device state with the rows in slots of their own, in another order."""
    num_rows, vocab_size = logits.shape
    columns = make_columns(rows, vocab_size)
    slots = torch.arange(num_rows).flip(0) + 1
    state = SlotParams(num_rows + 2, vocab_size, torch.device(DEVICE))
    params = state.pack([row.params for row in rows])
    state.params[slots] = torch.from_numpy(params).to(DEVICE)
    state.seeds[slots] = torch.tensor([row.seed for row in rows], device=DEVICE)
    for row, counts in columns.counts.items():
        state.counts[slots[row]] = counts.to(DEVICE)
    device_rows = state.rows(slots.to(DEVICE), torch.from_numpy(columns.position.astype(np.int32)).to(DEVICE))
    logits = logits.clone().to(DEVICE)
    addends = columns.addends(vocab_size)
    sampler.adjust(logits, device_rows, has_penalties=bool(columns.counts),
                   addends=addends and tuple(torch.from_numpy(array).to(DEVICE) for array in addends))
    out = torch.empty(num_rows, dtype=torch.int64, pin_memory=DEVICE == "cuda")  # read once the device has got there
    tokens = sampler.sample(logits, device_rows, truncates=bool(columns.truncates(vocab_size).any()), out=out)
    assert state.last_tokens.cpu()[slots].tolist() == tokens.tolist()
    for row, counts in columns.counts.items():
        counts[tokens[row]] += 2
        assert state.counts[slots[row]].tolist() == counts.tolist()
    return tokens


@pytest.mark.parametrize("kind", ["normal", "tied", "extreme"])
@pytest.mark.parametrize("case", CASES)
def test_agrees_with_reference(case, kind):
    seed = np.random.SeedSequence().entropy % 2**32
    print("seed", seed)
    rng = np.random.default_rng(seed)
    vocab_size = int(rng.integers(310, 420))
    num_rows = 3 if kind == "extreme" else 2
    rows = make_rows(CASES[case], vocab_size, num_rows, rng)
    logits = make_logits(kind, num_rows, vocab_size, torch.Generator().manual_seed(seed))
    drawn = draw(logits, rows)
    for i, row in enumerate(rows):
        assert_same_draw(logits[i], row, int(drawn[i]))


@pytest.mark.parametrize("kind", ["normal", "tied"])
def test_several_chunks(kind):
    """Exact ties at the cut and at the top lie in several chunks."""
    vocab_size = 9001
    params = [SamplingParams(temperature=0.0), SamplingParams(), SamplingParams(top_k=5000, temperature=9.0),
              SamplingParams(top_p=0.999, temperature=50.0), SamplingParams(min_p=0.01, temperature=2.0),
              SamplingParams(top_k=4500, top_p=0.99, temperature=60.0)]
    rows = [SamplingRow(params=p, prompt_ids=(1, 2), seed=i) for i, p in enumerate(params)]
    logits = make_logits(kind, len(rows), vocab_size, torch.Generator().manual_seed(5))
    drawn = draw(logits, rows)
    for i, row in enumerate(rows):
        assert_same_draw(logits[i], row, int(drawn[i]))


class _Recorder:
    """Passes launches on and keeps the plans and window sizes of the last one."""

    def __init__(self, kernel):
        self._kernel = kernel

    def __getitem__(self, grid):
        def launch(*args, **kwargs):
            self.plans, self.sizes = args[7].tolist(), args[8].tolist()
            return self._kernel[grid](*args, **kwargs)
        return launch


_WINDOWS = [  # parameters, the kind of window for peaked logits and for flat ones
    (SamplingParams(top_k=20), NEAR, NEAR), (SamplingParams(top_k=1), NEAR, NEAR),
    (SamplingParams(top_p=0.5), NEAR, WIDE), (SamplingParams(top_p=0.5, min_p=0.5), NEAR, NEAR),
    (SamplingParams(top_p=0.9, min_p=0.03), NEAR, WIDE),
    (SamplingParams(top_k=3000), WIDE, WIDE), (SamplingParams(top_k=5900, temperature=3.0), WIDE, WIDE),
    (SamplingParams(top_p=0.9, temperature=4.0), WIDE, WIDE), (SamplingParams(min_p=0.05), WIDE, WIDE),
    (SamplingParams(top_k=20, top_p=0.9, min_p=0.01), NEAR, NEAR),
    (SamplingParams(top_k=3000, top_p=0.9), NO_WINDOW, NO_WINDOW), (SamplingParams(), NO_WINDOW, NO_WINDOW),
]


@pytest.mark.parametrize("kind", ["peaked", "flat", "all_equal", "tied", "masked"])
def test_windows(kind, monkeypatch):
    """Rows longer than their windows: the end lies in a small part of the row, or the whole row is searched."""
    vocab_size, capacity = 6001, 1600
    monkeypatch.setattr(sampler, "window_capacity", lambda vocab_size: capacity)
    recorder = _Recorder(sampler.finish_kernel)
    monkeypatch.setattr(sampler, "finish_kernel", recorder)
    seed = np.random.SeedSequence().entropy % 2**32
    print("seed", seed)
    generator = torch.Generator().manual_seed(seed)
    cases = _WINDOWS
    if kind not in ("peaked", "flat"):  # some of them, others the next time: the interpreter is slow
        cases = [_WINDOWS[i] for i in np.random.default_rng(seed).permutation(len(_WINDOWS))[:5]]
    rows = [SamplingRow(params=params, prompt_ids=(1, 2), seed=seed + i) for i, (params, _, _) in enumerate(cases)]
    logits = make_logits(kind, len(rows), vocab_size, generator) / 3
    if kind == "peaked":
        logits -= 2 * torch.log1p(torch.rand(logits.shape, generator=generator).argsort(dim=-1).float())
    elif kind == "masked":
        logits[:, torch.rand(vocab_size, generator=generator) < 0.998] = -math.inf
    drawn = draw(logits, rows)
    if kind in ("peaked", "flat"):
        assert [plan[2] for plan in recorder.plans] == [kinds[kind == "flat"] for _, *kinds in _WINDOWS]
        assert all(size <= capacity for size, plan in zip(recorder.sizes, recorder.plans) if plan[2] != NO_WINDOW)
    for i, row in enumerate(rows):
        assert_same_draw(logits[i], row, int(drawn[i]))


def test_mixed_batch_draws_what_each_row_draws_alone():
    seed = np.random.SeedSequence().entropy % 2**32
    print("seed", seed)
    rng = np.random.default_rng(seed)
    rows = [make_rows(params, 500, 1, rng)[0] for params in CASES.values()]
    logits = make_logits("normal", len(rows), 500, torch.Generator().manual_seed(seed))
    together = draw(logits, rows).tolist()
    for i in rng.permutation(len(rows))[:6]:  # others the next time: the interpreter is slow
        assert together[i] == int(draw(logits[i:i + 1], rows[i:i + 1]))


@pytest.mark.parametrize(("params", "expected"), [
    (SamplingParams(top_p=0.5), {0, 1}),
    (SamplingParams(top_k=3, top_p=0.6), {0, 1}),
    (SamplingParams(min_p=1.0, top_p=0.75), {0, 1, 2}),
    (SamplingParams(top_k=3), {0, 1, 2}),
])
def test_kept_sets_by_hand(params, expected):
    """Four equal tokens and eight that together weigh as much as one of them."""
    logits = torch.tensor([0.0] * 4 + [-math.log(8)] * 8)
    if params.min_p == 0:
        logits[4:] = -math.inf
    rows = [SamplingRow(params=params, seed=i) for i in range(12)]
    assert set(draw(logits.expand(12, -1), rows).tolist()) == expected


def test_logits_without_a_number_still_give_a_token():
    logits = torch.full((2, 50), math.nan)
    rows = [SamplingRow(params=SamplingParams(temperature=t)) for t in (0.0, 1.0)]
    assert all(0 <= token < 50 for token in draw(logits, rows).tolist())


@triton.jit
def _stream_kernel(words, variates, seed_ptr, position, first, NUM: tl.constexpr):
    block = first // 4 + tl.arange(0, NUM // 4)
    drawn = block_words(block.to(tl.uint32), position + tl.program_id(0), tl.load(seed_ptr))
    at = tl.program_id(0) * NUM + tl.arange(0, NUM // 4)[:, None] * 4 + tl.arange(0, 4)[None, :]
    tl.store(words + at, drawn.to(tl.int64))
    tl.store(variates + at, tl.exp2(log2_exponentials(drawn)))


@pytest.mark.parametrize("seed", [0, -1, 2**63 - 1, -2**63, 0x123456789ABCDEF])
def test_stream_is_the_same_in_integers(seed):
    words = torch.empty(2, 64, dtype=torch.int64, device=DEVICE)
    variates = torch.empty(2, 64, device=DEVICE)
    _stream_kernel[(2,)](words, variates, torch.tensor([seed], device=DEVICE), 77, 4096, NUM=64)
    expected = [[token_word(seed, 77 + row, 4096 + token) for token in range(64)] for row in range(2)]
    assert words.tolist() == expected
    assert torch.allclose(variates.cpu(), cpu_exponentials(np.array(expected, dtype=np.uint64)), rtol=2e-5, atol=0)


@triton.jit
def _exponentials_kernel(words, variates, NUM: tl.constexpr):
    at = tl.program_id(0) * NUM + tl.arange(0, NUM)
    tl.store(variates + at, tl.exp2(log2_exponentials(tl.load(words + at).to(tl.uint32))))


def test_variates_keep_their_precision():
    """The smallest ones too, which a uniform of 24 bits could not tell apart, and both sides of every border."""
    edges = [0, 1, 2, 3, 4, 255, 2**28 - 2**5, 2**28 - 1, 2**28, 2**28 + 1, 2**31, 2**32 - 2**10, 2**32 - 2**8,
             2**32 - 2, 2**32 - 1, 0xAAAAAAAA]
    words = torch.cat((torch.tensor(edges), torch.randint(0, 2**32, (4080,)))).to(DEVICE)
    variates = torch.empty(4096, device=DEVICE)
    _exponentials_kernel[(1,)](words, variates, NUM=4096)
    assert torch.allclose(variates.cpu(), cpu_exponentials(words.cpu().numpy().astype(np.uint64)), rtol=2e-5, atol=0)
    assert (variates > 0).all()
    assert len(set(variates[:5].tolist())) == 5


@pytest.mark.parametrize("num_top", [0, 1, 20])
@pytest.mark.parametrize("kind", ["normal", "tied"])
def test_logprobs(kind, num_top):
    vocab_size = 5003
    logits = make_logits(kind, 4, vocab_size, torch.Generator().manual_seed(9))
    chosen = [5002, 0, int(logits[2].argmax()), 4096]
    rows = torch.tensor([3, 0, 2, 1])
    ids, values, ranks = sampler.logprobs(logits.to(DEVICE), rows.to(DEVICE), torch.tensor(chosen, device=DEVICE),
                                          num_top)
    for i, row in enumerate(rows.tolist()):
        expected = reference.logprobs(logits[row], chosen[i], num_top)
        assert ids[i].tolist() == expected.token_ids
        assert values[i].tolist() == pytest.approx(expected.logprobs, abs=1e-5)
        assert int(ranks[i]) == expected.rank
