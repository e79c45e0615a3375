"""What a step is made of: decodes, prompts and chunks under the limits; slots; static batching; overlap."""

import pytest
from helpers.harness import Harness, make_config


def shape(batch):
    """(decode rows, tokens of each other row)."""
    return batch.num_decodes, batch.num_tokens[batch.num_decodes:]


def test_a_prompt_then_one_token_a_step():
    harness = Harness(depth=0)
    harness.add([1, 2, 3, 4, 5], max_tokens=3, ignore_eos=True)
    first, second, third = harness.step(), harness.step(), harness.step()
    assert shape(first) == (0, [5])
    assert (first.starts, first.is_sampled) == ([0], [True])
    assert (second.num_decodes, second.starts, second.is_sampled) == (1, [5], [True])
    assert third.starts == [6]
    assert not second.new
    harness.run()
    assert harness.step() is None


def test_decodes_come_first_and_prompts_fill_up():
    harness = Harness(depth=0, max_num_tokens=10)
    harness.add([1] * 4, max_tokens=9, ignore_eos=True)
    harness.step()
    harness.add([2] * 15, max_tokens=2, ignore_eos=True)
    harness.add([3] * 3, max_tokens=2, ignore_eos=True)
    assert shape(harness.step()) == (1, [9])
    batch = harness.step()
    assert shape(batch) == (1, [6, 3])
    assert batch.starts[1:] == [9, 0]
    assert batch.is_sampled == [True, True, True]
    harness.run()


def test_prompts_share_a_step_of_the_chunks_size_while_others_wait():
    harness = Harness(make_config(chunked_prefill_size=4), depth=0, max_num_tokens=10)
    for number in (1, 2, 3):
        harness.add([number] * 3, max_tokens=9, ignore_eos=True)
    assert shape(harness.step()) == (0, [3, 1])
    assert shape(harness.step()) == (1, [2, 2])
    assert shape(harness.step()) == (2, [1])
    harness.run()


def test_a_prompt_that_is_alone_takes_the_whole_step():
    harness = Harness(make_config(chunked_prefill_size=4), depth=0, max_num_tokens=10)
    harness.add([1] * 12, max_tokens=2, ignore_eos=True)
    assert shape(harness.step()) == (0, [10])
    harness.add([2] * 7, max_tokens=2, ignore_eos=True)
    assert shape(harness.step()) == (0, [2, 2])
    harness.run()


def test_prompts_that_run_whole_are_not_cut_by_the_chunks_size():
    harness = Harness(make_config(chunked=False, chunked_prefill_size=4), depth=0, max_num_tokens=10)
    for number in (1, 2):
        harness.add([number] * 5, max_tokens=2, ignore_eos=True)
    assert shape(harness.step()) == (0, [5, 5])
    harness.run()


def test_the_last_chunk_of_one_token_is_no_decode():
    harness = Harness(depth=0, max_num_tokens=4)
    harness.add([1] * 5, max_tokens=2, ignore_eos=True)
    assert shape(harness.step()) == (0, [4])
    assert shape(harness.step()) == (0, [1])
    assert shape(harness.step()) == (1, [])


def test_max_batch_size_bounds_the_running_ones():
    harness = Harness(depth=0, max_batch_size=2)
    for _ in range(3):
        harness.add([1, 2], max_tokens=2, ignore_eos=True)
    assert harness.step().num_rows == 2
    assert (harness.scheduler.num_running, harness.scheduler.num_waiting) == (2, 1)
    harness.run()


def test_nobody_is_admitted_before_the_step_has_tokens_for_it():
    harness = Harness(depth=0, max_num_tokens=8)
    for number in (1, 2, 3):
        harness.add([number] * 8, max_tokens=1)
    harness.step()
    assert harness.scheduler.num_waiting == 2
    harness.run()


def test_a_freed_slot_is_announced_before_it_is_taken_again():
    harness = Harness(depth=0, max_batch_size=1)
    harness.add([1], max_tokens=1)
    harness.add([2], max_tokens=1)
    assert [init.slot for init in harness.step().new] == [0]
    batch = harness.step()
    assert (batch.freed, [init.slot for init in batch.new]) == ([0], [0])


def test_freed_slots_wait_for_the_next_real_batch():
    harness = Harness(depth=0)
    request_id = harness.add([1], max_tokens=5, ignore_eos=True)
    harness.step()
    harness.cancel(request_id)
    assert harness.step() is None
    harness.add([2], max_tokens=1)
    assert harness.step().freed == [0]


def test_new_says_all_the_runner_must_know():
    harness = Harness(make_config(reuse=False), depth=0)
    harness.add([1] * 6, seed=11, max_tokens=3, n=2, stop_token_ids=(5,), min_tokens=2)
    inits = harness.step().new
    assert [init.seed for init in inits] == [11, 12]
    assert inits[0].token_ids == [1] * 6
    assert inits[0].num_prompt_tokens == 6
    assert len(inits[0].block_ids) == 2
    assert inits[0].end_ids == (0, 5)
    assert inits[0].sampling.min_tokens == 2


def test_blocks_are_added_when_a_decode_needs_one():
    harness = Harness(depth=0, tokens_per_block=4)
    harness.add([1] * 3, max_tokens=7, ignore_eos=True)
    added = [[len(block_ids) for _, block_ids in harness.step().new_blocks] for _ in range(7)]
    assert added == [[], [], [1], [], [], [], [1]]


@pytest.mark.parametrize("depth", [1, 2])
def test_overlap_runs_ahead_but_never_past_the_length(depth):
    harness = Harness(depth=depth)
    harness.add([1, 2, 3], max_tokens=6, ignore_eos=True)
    batches = [harness.step() for _ in range(6)]
    assert all(batch is not None for batch in batches)
    assert harness.step() is None
    assert [batch.starts for batch in batches] == [[0], [3], [4], [5], [6], [7]]
    harness.run()


def test_a_token_drawn_after_the_end_is_dropped_and_its_blocks_come_back_late():
    harness = Harness(depth=1, vocab_size=2)  # half of all tokens end a sequence
    key = (harness.add([1, 1, 1], max_tokens=60), 0)
    expected = harness.completions[key].expected
    assert expected.finish_reason == "stop"
    while harness.completions[key].finish_reason is None:
        harness.step()
    # The step launched before the end was known still names the blocks.
    assert not harness.scheduler.has_work()
    assert harness.scheduler.pool.num_used > 0
    assert harness.runner.batches[-1].starts[0] == 3 + len(expected.token_ids) - 1
    harness.drain()
    assert harness.scheduler.pool.num_used == 0
    harness.check_ended()


class TestWholePrompts:
    """enable_chunked_prefill off."""

    def test_a_prompt_waits_until_it_fits_whole(self):
        harness = Harness(make_config(chunked=False), depth=0, max_num_tokens=10)
        harness.add([1] * 7, max_tokens=2, ignore_eos=True)
        harness.add([2] * 7, max_tokens=2, ignore_eos=True)
        assert shape(harness.step()) == (0, [7])
        assert shape(harness.step()) == (1, [7])
        harness.run()

    def test_decodes_make_room_for_a_prompt_as_long_as_a_step(self):
        harness = Harness(make_config(chunked=False), depth=0, max_num_tokens=10)
        harness.add([1] * 3, max_tokens=40, ignore_eos=True)
        harness.step()
        harness.add([2] * 10, max_tokens=2, ignore_eos=True)
        assert shape(harness.step()) == (1, [])
        assert shape(harness.step()) == (0, [10])
        assert shape(harness.step()) == (2, [])
        harness.run()

    def test_what_has_grown_longer_than_a_step_is_computed_again_in_chunks(self):
        harness = Harness(make_config(chunked=False, reuse=False), depth=0, max_num_tokens=8, num_blocks=8,
                          tokens_per_block=4, max_seq_len=32, max_input_len=31)
        harness.add([1] * 8, max_tokens=24, ignore_eos=True, arrival_time=1.0)
        harness.add([2] * 8, max_tokens=24, ignore_eos=True, arrival_time=2.0)
        harness.run()
        assert harness.scheduler.num_preemptions > 0
        lengths = [init.token_ids for batch in harness.runner.batches for init in batch.new]
        assert max(map(len, lengths)) > 8


class TestStaticBatching:
    """in_flight_batching off."""

    def test_the_next_batch_waits_for_the_last_member(self):
        harness = Harness(make_config(in_flight=False), depth=0)
        harness.add([1] * 3, max_tokens=2, ignore_eos=True)
        harness.add([2] * 3, max_tokens=5, ignore_eos=True)
        harness.step()
        harness.add([3] * 3, max_tokens=1, ignore_eos=True)
        assert [harness.step().num_rows for _ in range(4)] == [2, 1, 1, 1]
        batch = harness.step()
        assert batch.new[0].token_ids == [3] * 3
        assert batch.num_rows == 1
        harness.run()

    def test_a_batch_is_filled_even_if_its_prompts_take_several_steps(self):
        harness = Harness(make_config(in_flight=False), depth=0, max_num_tokens=8, max_batch_size=3)
        for number in range(4):
            harness.add([number] * 6, max_tokens=3, ignore_eos=True)
        assert shape(harness.step()) == (0, [6, 2])
        assert (harness.scheduler.num_running, harness.scheduler.num_waiting) == (3, 1)
        assert shape(harness.step()) == (1, [4, 3])
        harness.run()

    def test_completions_of_one_prompt_run_together(self):
        harness = Harness(make_config(in_flight=False), depth=0, max_batch_size=4)
        harness.add([1] * 9, n=4, max_tokens=3, ignore_eos=True)
        assert harness.step().num_rows == 4

    def test_full_lengths_are_reserved_under_either_policy(self):
        for policy in ("max_utilization", "guaranteed_no_evict"):
            harness = Harness(make_config(policy, in_flight=False), depth=0, num_blocks=8)
            harness.add([1] * 4, max_tokens=16, ignore_eos=True)
            harness.add([2] * 4, max_tokens=16, ignore_eos=True)
            assert harness.step().num_rows == 1
            harness.run()
            assert harness.scheduler.num_preemptions == 0
