import itertools

import pytest
from helpers.harness import Harness

from pelton.scheduler.masks import banned_tokens


@pytest.mark.parametrize(("tokens", "words", "banned"), [
    ([1, 2, 3], [(3, 4)], [4]),
    ([1, 2, 3], [(2, 3, 9), (3, 4)], [4, 9]),
    ([1, 2, 3], [(2, 4)], []),
    ([1, 2, 3], [(7,)], [7]),
    ([1], [(1, 1, 5)], []),
    ([1, 1], [(1, 1, 5)], [5]),
    ([1, 2], [(1, 2, 5), (2, 5)], [5]),
    ([1, 2], [], []),
])
def test_banned_tokens(tokens, words, banned):
    assert banned_tokens(tokens, words) == banned


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_bad_words_never_come_about(depth):
    words = ((4,), *itertools.product(range(5), range(4)))
    harness = Harness(depth=depth, vocab_size=6)
    done = [harness.completions[harness.add([number, 5], seed=number, max_tokens=40, ignore_eos=True,
                                            bad_words_token_ids=words), 0] for number in range(4)]
    plain = harness.completions[harness.add([1, 5], max_tokens=40, ignore_eos=True), 0]
    harness.run()
    for completion in done:
        tokens = completion.request.input_token_ids + completion.token_ids
        assert not set(itertools.pairwise(tokens)) & set(words)
        assert 4 not in completion.token_ids
    assert 4 in plain.token_ids


def test_no_masks_when_nobody_needs_any():
    harness = Harness(depth=0)
    harness.add([1], max_tokens=3)
    batch = harness.scheduler.schedule()
    assert harness.scheduler.masks(batch) is None


def test_ended_sequences_need_no_mask():
    harness = Harness(depth=1)
    request_id = harness.add([1, 2], max_tokens=9, ignore_eos=True, bad_words_token_ids=((1, 2),))
    batch = harness.scheduler.schedule()
    harness.scheduler.cancel(request_id)
    assert harness.scheduler.masks(batch) is None
