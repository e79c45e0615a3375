"""Blocks run out: who waits, who is preempted, when."""

import pytest
from helpers.harness import Harness, make_config

from pelton.scheduler.policies import RUNNING_PER_SPARE_BLOCK


def running(harness):
    scheduler = harness.scheduler
    return sorted(seq.key[0] for seq in (*scheduler._prefilling, *scheduler._decoding))


class TestMaxUtilization:
    def test_admits_by_what_is_known_now(self):
        harness = Harness(depth=0, num_blocks=8)
        harness.add([1] * 4, max_tokens=20, ignore_eos=True)
        harness.add([2] * 4, max_tokens=20, ignore_eos=True)
        assert harness.step().num_rows == 2

    @pytest.mark.parametrize("depth", [0, 1, 2])
    def test_preempts_the_last_to_come_and_computes_it_again(self, depth):
        harness = Harness(depth=depth, num_blocks=6)
        first = harness.add([1] * 4, max_tokens=20, ignore_eos=True)
        last = harness.add([2] * 4, max_tokens=20, ignore_eos=True)
        while not harness.scheduler.num_preemptions:
            harness.step()
        assert running(harness) == [first]
        harness.run()
        ends = [news for done in harness.completions.values() for news in done.outputs if news.finish_reason]
        assert [news.request_id for news in sorted(ends, key=lambda news: news.request_id)] == [first, last]
        resumed = [init for batch in harness.runner.batches for init in batch.new if len(init.token_ids) > 4]
        assert [init.num_prompt_tokens for init in resumed] == [4] * harness.scheduler.num_preemptions

    def test_preempts_the_lowest_priority_first(self):
        harness = Harness(depth=0, num_blocks=6, max_batch_size=3)
        low = harness.add([1] * 4, max_tokens=12, ignore_eos=True, priority=-1)
        high = harness.add([2] * 4, max_tokens=12, ignore_eos=True)
        while not harness.scheduler.num_preemptions:
            harness.step()
        assert running(harness) == [high]
        assert low in harness.scheduler._live
        harness.run()

    def test_one_that_needs_a_block_and_is_last_gives_way_itself(self):
        harness = Harness(depth=0, num_blocks=5)
        first = harness.add([1] * 6, max_tokens=10, ignore_eos=True)  # grows at 8 tokens
        harness.add([2] * 12, max_tokens=8, ignore_eos=True)  # grows at once
        harness.step()
        batch = harness.step()
        assert batch.num_rows == 1
        assert running(harness) == [first]
        harness.run()

    def test_no_preemption_before_all_tokens_are_known(self):
        harness = Harness(depth=1, num_blocks=4)
        harness.add([1] * 8, max_tokens=8, ignore_eos=True)
        harness.add([2] * 8, max_tokens=8, ignore_eos=True)
        assert harness.step().num_rows == 2
        # Both have a token in flight and no block is left: neither can run, neither can be preempted yet.
        assert harness.step() is None
        assert harness.scheduler.num_preemptions == 0
        assert harness.step().num_rows == 1
        assert harness.scheduler.num_preemptions == 1
        harness.run()

    def test_the_victim_sits_out_until_its_tokens_are_known(self):
        harness = Harness(depth=1, num_blocks=5)
        first = harness.add([1] * 8, max_tokens=9, ignore_eos=True)
        second = harness.add([2] * 9, max_tokens=3, ignore_eos=True)
        harness.step()
        assert harness.step() is None  # the second could run, but is held for the first
        batch = harness.step()
        assert batch.num_rows == 1
        assert running(harness) == [first]
        assert harness.completions[second, 0].finish_reason is None
        harness.run()

    def test_blocks_on_their_way_back_spare_a_preemption(self):
        harness = Harness(depth=1, num_blocks=7, max_num_tokens=14)
        harness.add([1] * 8, max_tokens=3, ignore_eos=True)  # grows in the second step
        gone = harness.add([2] * 4, max_tokens=3, ignore_eos=True)
        harness.add([3] * 16, max_tokens=1)  # could be preempted: its tokens are known
        harness.step()
        harness.cancel(gone)
        harness.run()
        assert harness.scheduler.num_preemptions == 0

    @pytest.mark.parametrize("priority", [-1, 1])
    def test_a_half_computed_prompt_is_a_victim_like_any_other(self, priority):
        harness = Harness(depth=0, num_blocks=6, max_num_tokens=7)
        decoding = harness.add([1] * 7, max_tokens=6, ignore_eos=True)
        harness.step()
        prefilling = harness.add([2] * 16, max_tokens=2, priority=priority, ignore_eos=True)
        while not harness.scheduler.num_preemptions:
            harness.step()
        assert running(harness) == [decoding if priority < 0 else prefilling]
        harness.run()

    def test_an_admission_leaves_room_to_grow(self):
        harness = Harness(depth=0, num_blocks=11, max_batch_size=12)
        for number in range(RUNNING_PER_SPARE_BLOCK + 1):
            harness.add([number] * 4, max_tokens=4, ignore_eos=True)
        harness.step()
        # Five run on five blocks; each takes a second one now, and the last is to stay free.
        harness.add([9] * 4, max_tokens=4, ignore_eos=True)
        assert harness.step().num_rows == RUNNING_PER_SPARE_BLOCK + 1
        assert harness.scheduler.num_waiting == 1
        harness.run()

    def test_anything_valid_runs_alone(self):
        harness = Harness(depth=1, num_blocks=4)
        harness.add([1] * 16, max_tokens=5, ignore_eos=True)
        harness.run()
        assert harness.runner.batches[0].new[0].block_ids == [0, 1, 2, 3]


class TestGuaranteedNoEvict:
    def test_admits_only_what_is_sure_to_finish(self):
        harness = Harness(make_config("guaranteed_no_evict"), depth=0, num_blocks=8)
        harness.add([1] * 4, max_tokens=13, ignore_eos=True)  # 16 places: 4 blocks
        harness.add([2] * 4, max_tokens=14, ignore_eos=True)  # 17 places: 5 blocks
        assert harness.step().num_rows == 1
        harness.run()
        harness.add([3] * 4, max_tokens=13, ignore_eos=True)
        harness.add([4] * 4, max_tokens=13, ignore_eos=True)
        assert harness.step().num_rows == 2
        harness.run()
        assert harness.scheduler.num_preemptions == 0

    def test_shared_blocks_are_promised_once(self):
        harness = Harness(make_config("guaranteed_no_evict"), depth=0, num_blocks=6)
        harness.add([1] * 12, max_tokens=5, ignore_eos=True)
        harness.step()
        harness.add([1] * 12, max_tokens=5, ignore_eos=True)  # 4 blocks, 2 of them shared
        assert harness.step().num_rows == 2
        harness.run()
