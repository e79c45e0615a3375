"""Equal prefixes are computed once, and nothing is found that is not there."""

import pytest
from helpers.harness import Harness, make_config


def computed(harness):
    """Prompt tokens each admission had to compute."""
    counts = []
    for batch in harness.runner.batches:
        for init in batch.new:
            counts.append(len(init.token_ids) - batch.starts[batch.slots.index(init.slot)])
    return counts


def cached(harness, request_id, index=0):
    return harness.completions[request_id, index].outputs[0].num_cached_tokens


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_later_request_reuses_full_blocks(depth):
    harness = Harness(depth=depth)
    harness.add([*range(1, 11)], max_tokens=2)
    harness.run()
    second = harness.add([*range(1, 11), 20], max_tokens=2)
    harness.run()
    assert computed(harness) == [10, 3]
    assert cached(harness, second) == 8
    stats = harness.scheduler.stats()
    assert (stats["num_prompt_tokens"], stats["num_cached_tokens"]) == (21, 8)


def test_at_least_one_token_is_computed():
    harness = Harness(depth=0)
    for _ in range(2):
        harness.add([1] * 8, max_tokens=1)
        harness.run()
    assert computed(harness) == [8, 4]


def test_running_sequences_share():
    harness = Harness(depth=0)
    harness.add([1] * 9, max_tokens=9, ignore_eos=True)
    harness.step()
    harness.add([1] * 9, max_tokens=9, ignore_eos=True)
    harness.step()
    assert harness.scheduler.pool.num_used == 4  # two shared, and one each
    harness.run()


@pytest.mark.parametrize("depth", [0, 1])
def test_completions_of_one_prompt_compute_it_once(depth):
    harness = Harness(depth=depth)
    request_id = harness.add([1] * 9, n=4, max_tokens=5, ignore_eos=True)
    first, second = harness.step(), harness.step()
    assert len(first.new) == 1  # the others wait one step for the blocks it computes
    assert len(second.new) == 3
    harness.run()
    assert computed(harness) == [9, 1, 1, 1]
    assert [cached(harness, request_id, index) for index in range(4)] == [0, 8, 8, 8]


def test_those_waiting_for_a_prefix_let_others_pass():
    harness = Harness(depth=0)
    for number in (1, 2):
        harness.add([number] * 9, n=2, max_tokens=3, ignore_eos=True)
    assert [init.token_ids[0] for init in harness.step().new] == [1, 2]
    assert [init.token_ids[0] for init in harness.step().new] == [1, 2]


def test_waiting_for_a_prefix_ends_when_its_maker_leaves():
    harness = Harness(depth=0, max_num_tokens=4)
    maker = harness.add([1] * 12, max_tokens=3, ignore_eos=True)
    harness.step()
    harness.add([1] * 12, max_tokens=3, ignore_eos=True)
    harness.step()
    assert harness.scheduler.num_waiting == 1
    harness.cancel(maker)
    harness.step()
    assert harness.scheduler.num_waiting == 0
    assert computed(harness)[1] == 4
    harness.run()


def test_nobody_waits_for_one_that_goes_after_it():
    harness = Harness(depth=0, max_num_tokens=6)
    harness.add([1] * 20, max_tokens=1)
    harness.step()
    harness.add([2] * 9, max_tokens=9, ignore_eos=True, priority=2)
    harness.add([1] * 20, max_tokens=1, priority=1)
    harness.run()
    started = [init.token_ids[0] for batch in harness.runner.batches for init in batch.new]
    assert started == [1, 2, 1]
    assert computed(harness) == [20, 9, 16]  # of five blocks, one was there by then


def test_prompts_shorter_than_a_block_share_nothing_and_wait_for_nothing():
    harness = Harness(depth=0)
    harness.add([1, 2, 3], n=3, max_tokens=1)
    assert len(harness.step().new) == 3


def test_salt_keeps_apart():
    harness = Harness(depth=0)
    requests = []
    for salt in ("a", "b", "a"):
        requests.append(harness.add([1] * 9, max_tokens=1, salt=salt))
        harness.run()
    assert [cached(harness, request_id) for request_id in requests] == [0, 0, 8]


def test_sequences_of_different_variants_share_nothing():
    harness = Harness(depth=0, kv_variant=lambda num_prompt, most: "long" if most > 12 else "")
    requests = []
    for max_tokens in (3, 4, 3, 4):  # 9 prompt tokens: 12 and 13 in all
        requests.append(harness.add([1] * 9, max_tokens=max_tokens))
        harness.run()
    assert [cached(harness, request_id) for request_id in requests] == [0, 0, 8, 8]


def test_off_means_off():
    harness = Harness(make_config(reuse=False), depth=0)
    for _ in range(2):
        harness.add([1] * 9, n=2, max_tokens=1)
        harness.run()
    assert computed(harness) == [9] * 4
    assert harness.scheduler.pool.num_cached == 0


def test_prompt_logprobs_are_computed_not_reused():
    harness = Harness(depth=1, max_num_tokens=5)
    for _ in range(2):
        harness.add([*range(1, 13)], max_tokens=2, prompt_logprobs=0)  # over three chunks
        harness.run()
    assert computed(harness) == [12, 12]
    third = harness.add([*range(1, 13)], max_tokens=2)
    harness.run()
    assert cached(harness, third) == 8


@pytest.mark.parametrize("depth", [0, 1])
def test_output_is_reused_as_the_next_prompt(depth):
    harness = Harness(depth=depth)
    first = harness.add([1] * 6, max_tokens=12, ignore_eos=True)
    harness.run()
    said = harness.completions[first, 0].token_ids
    second = harness.add([1] * 6 + said + [3], max_tokens=1)
    harness.run()
    # 17 of the 18 tokens were computed (nothing follows the last), which is four full blocks.
    assert cached(harness, second) == 16


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_preempted_sequence_finds_its_own_blocks_again(depth):
    harness = Harness(depth=depth, num_blocks=8)
    harness.add([1] * 4, max_tokens=24, ignore_eos=True)
    second = harness.add([2] * 4, max_tokens=24, ignore_eos=True)
    harness.run()
    assert harness.scheduler.num_preemptions > 0
    resumed = [(batch.starts[batch.slots.index(init.slot)], len(init.token_ids))
               for batch in harness.runner.batches for init in batch.new if len(init.token_ids) > 4]
    assert any(start > 0 for start, _ in resumed)
    # Its own tokens are no cached prompt, and its prompt counts once.
    assert [news.num_cached_tokens for news in harness.completions[second, 0].outputs] == [0] * 24
    assert harness.scheduler.num_prompt_tokens == 8
    assert harness.scheduler.num_cached_tokens == 0


def test_a_cancelled_prompt_leaves_what_was_computed():
    harness = Harness(depth=1, max_num_tokens=8)
    gone = harness.add([1] * 20, max_tokens=1)
    harness.step()
    harness.cancel(gone)
    later = harness.add([1] * 20, max_tokens=1)
    harness.run()
    assert cached(harness, later) == 8
