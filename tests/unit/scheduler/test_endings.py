"""How sequences end: by token, by length, from outside, by a step that failed."""

import pytest
from helpers.fake_runner import oracle
from helpers.harness import EOS, Harness, make_request

from pelton.scheduler.scheduler import Scheduler
from pelton.types import Sequence, StepOutput, TokenLogprobs


class OneSequence:
    """A scheduler with one sequence, fed with tokens by hand."""

    def __init__(self, prompt=(1, 2, 3), end_ids=(0,), **params):
        self.scheduler = Scheduler(Harness().limits)
        request = make_request(prompt, request_id="r", **params)
        self.scheduler.validate(request)
        self.scheduler.add(Sequence(request, index=0, arrival=0, seed=0, end_ids=end_ids))

    def draw(self, *tokens, **more):
        """The last Output after these tokens were drawn, one a step."""
        for token in tokens:
            batch = self.scheduler.schedule()
            outputs = self.scheduler.update(StepOutput(batch.step_id, batch.sampled_slots, [token], **more))
        assert len(outputs) == 1
        return outputs[0]


def end(output):
    return output.finish_reason, output.stop_reason


def test_end_of_sequence():
    one = OneSequence()
    assert end(one.draw(5)) == (None, None)
    output = one.draw(0)
    assert end(output) == ("stop", None)
    assert output.token_ids == [0]
    assert not one.scheduler.has_work()


def test_stop_token():
    assert end(OneSequence(stop_token_ids=(9, 8)).draw(8)) == ("stop", 8)


def test_end_of_sequence_named_as_stop_token_too():
    assert end(OneSequence(stop_token_ids=(0,)).draw(0)) == ("stop", None)
    assert end(OneSequence(stop_token_ids=(0,), ignore_eos=True).draw(0)) == ("stop", 0)


def test_ignore_eos():
    one = OneSequence(ignore_eos=True, max_tokens=3)
    assert end(one.draw(0, 0)) == (None, None)
    assert end(one.draw(0)) == ("length", None)


def test_several_ends():
    assert end(OneSequence(end_ids=(4, 5)).draw(5)) == ("stop", None)


def test_length():
    assert end(OneSequence(max_tokens=1).draw(7)) == ("length", None)


def test_an_end_at_the_full_length_is_a_stop():
    assert end(OneSequence(max_tokens=2).draw(7, 0)) == ("stop", None)


def test_no_end_before_min_tokens():
    one = OneSequence(min_tokens=2, stop_token_ids=(9,))
    assert end(one.draw(0, 9)) == (None, None)
    assert end(one.draw(0)) == ("stop", None)


def test_max_tokens_is_clipped_to_the_engine():
    for max_tokens in (None, 1000):
        harness = Harness(depth=1, max_seq_len=20, max_input_len=19)
        harness.add([1] * 15, max_tokens=max_tokens, ignore_eos=True)
        harness.run()
        (done,) = harness.completions.values()
        assert len(done.token_ids) == 5
        assert done.finish_reason == "length"


def test_length_is_clipped_to_the_whole_cache():
    harness = Harness(depth=1, num_blocks=3, tokens_per_block=4)
    harness.add([1] * 12, max_tokens=None, ignore_eos=True)
    harness.run()
    (done,) = harness.completions.values()
    assert len(done.token_ids) == 1  # which needs no place in the cache


def test_logprobs_are_passed_on():
    one = OneSequence(logprobs=1)
    entry = TokenLogprobs([5, 6], [-0.1, -2.0], 1)
    assert one.draw(5, logprobs=[entry]).logprobs == [entry]
    assert OneSequence().draw(5).logprobs is None


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_prompt_logprobs_survive_chunks_and_preemption(depth):
    harness = Harness(depth=depth, max_num_tokens=5, num_blocks=8)
    harness.add([1] * 8, max_tokens=20, ignore_eos=True)
    for _ in range(3):
        harness.step()
    second = harness.add([*range(20, 32)], max_tokens=12, ignore_eos=True, prompt_logprobs=0)
    harness.run()
    entries = harness.completions[second, 0].outputs[0].prompt_logprobs
    assert len(entries) == 12
    assert entries[0] is None
    assert all(entry is not None for entry in entries[1:])
    assert harness.scheduler.num_preemptions > 0


class TestFromOutside:
    @pytest.mark.parametrize("depth", [0, 1, 2])
    @pytest.mark.parametrize("num_steps", range(8))
    def test_cancel_in_any_state(self, depth, num_steps):
        harness = Harness(depth=depth, max_batch_size=2, num_blocks=6, max_num_tokens=6)
        ids = [harness.add([number] * 8, n=2, max_tokens=9, ignore_eos=True) for number in (1, 2, 3)]
        for _ in range(num_steps):
            harness.step()
        harness.cancel(ids[1])
        harness.step()
        harness.cancel(ids[0])
        assert harness.scheduler.cancel(ids[0]) == []
        harness.run()
        assert [harness.completions[ids[2], index].finish_reason for index in range(2)] == ["length", "length"]

    def test_cancel_of_an_unknown_id(self):
        assert Harness().scheduler.cancel("nobody") == []

    def test_cancelled_sequences_say_so(self):
        harness = Harness()
        request_id = harness.add([1], n=2)
        cancelled = harness.scheduler.cancel(request_id)
        assert [(seq.index, seq.finish_reason) for seq in cancelled] == [(0, "cancelled"), (1, "cancelled")]

    @pytest.mark.parametrize("depth", [0, 1, 2])
    def test_a_stop_string_drops_later_tokens(self, depth):
        harness = Harness(depth=depth)
        request_id = harness.add([1] * 4, n=2, max_tokens=30, ignore_eos=True)
        for _ in range(8):
            harness.step()
        assert len(harness.completions[request_id, 1].token_ids) >= 5
        harness.finish((request_id, 1), 3)
        assert harness.completions[request_id, 1].token_ids == harness.completions[request_id, 1].expected.token_ids[:3]
        harness.run()
        assert len(harness.completions[request_id, 0].token_ids) == 30
        assert harness.scheduler.num_generated_tokens == 33

    def test_a_stop_string_found_while_preempted(self):
        harness = Harness(depth=0, num_blocks=6)
        harness.add([1] * 4, max_tokens=20, ignore_eos=True)
        second = harness.add([2] * 4, max_tokens=20, ignore_eos=True)
        while not harness.scheduler.num_preemptions:
            harness.step()
        harness.finish((second, 0), 2)
        harness.run()

    def test_a_stop_string_found_after_the_end_changes_nothing(self):
        harness = Harness(depth=0)
        request_id = harness.add([1], max_tokens=2, ignore_eos=True)
        harness.run()
        harness.scheduler.finish(request_id, 0, 1)
        harness.scheduler.finish("nobody", 0, 1)
        harness.check_ended()
        assert harness.scheduler.num_generated_tokens == 2

    def test_the_count_of_generated_tokens_never_falls(self):
        harness = Harness(depth=0)
        first = harness.add([1], max_tokens=20, ignore_eos=True)
        for _ in range(6):
            harness.step()
        assert harness.scheduler.num_generated_tokens == 6
        harness.finish((first, 0), 2)
        assert harness.scheduler.num_generated_tokens == 6
        harness.add([2], max_tokens=10, ignore_eos=True)
        harness.run()
        assert harness.scheduler.num_generated_tokens == 12


class TestFailedStep:
    def test_only_its_own_sequences_end(self):
        harness = Harness(depth=1, fail_at=(0,))
        broken = harness.add([1] * 9, max_tokens=4, ignore_eos=True)
        harness.step()
        fine = harness.add([2] * 9, max_tokens=4, ignore_eos=True)
        harness.run()
        assert harness.completions[broken, 0].finish_reason == "error"
        assert harness.completions[broken, 0].outputs[-1].error == "step 0 broke"
        assert harness.completions[fine, 0].finish_reason == "length"

    @pytest.mark.parametrize("depth", [1, 2])
    def test_those_who_share_what_it_did_not_write_end_too(self, depth):
        harness = Harness(depth=depth, fail_at=(0,))
        harness.add([1] * 9, max_tokens=9, ignore_eos=True)
        harness.step()
        sharer = harness.add([1] * 9, max_tokens=9, ignore_eos=True)
        harness.step()
        harness.run()
        assert harness.completions[sharer, 0].finish_reason == "error"

    def test_those_who_share_what_others_wrote_meanwhile_go_on(self):
        harness = Harness(depth=2, fail_at=(0,))
        harness.add([1] * 9, max_tokens=9, ignore_eos=True)
        harness.step()
        fine = []
        for _ in range(2):  # the second finds what the first one's step, still in flight, is to write
            fine.append(harness.add([2] * 9, max_tokens=9, ignore_eos=True))
            harness.step()
        harness.run()
        assert [harness.completions[request_id, 0].finish_reason for request_id in fine] == ["length", "length"]
        assert harness.completions[fine[1], 0].outputs[0].num_cached_tokens == 8

    @pytest.mark.parametrize("depth", [0, 1, 2])
    def test_what_it_wrote_is_not_found_again(self, depth):
        harness = Harness(depth=depth, fail_at=(1,), max_num_tokens=8)
        harness.add([1] * 20, max_tokens=4, ignore_eos=True)
        harness.run()
        again = harness.add([1] * 20, max_tokens=4, ignore_eos=True)
        harness.run()
        (first, *_) = harness.completions[again, 0].outputs
        assert first.num_cached_tokens == 8  # of the step that did its work
        assert harness.completions[again, 0].finish_reason == "length"

    def test_sharers_of_older_blocks_go_on(self):
        harness = Harness(depth=1, fail_at=(1,))
        harness.add([1] * 9, max_tokens=1)
        harness.run()  # step 0
        broken = harness.add([1] * 9, max_tokens=4, ignore_eos=True)
        harness.step()
        fine = harness.add([1] * 9, max_tokens=4, ignore_eos=True)
        harness.run()
        assert harness.completions[broken, 0].finish_reason == "error"
        assert harness.completions[fine, 0].outputs[0].num_cached_tokens == 8
        assert harness.completions[fine, 0].finish_reason == "length"


def test_the_oracle_knows_all_endings():
    limits = Harness().limits
    reasons = {oracle(make_request([number], max_tokens=40, stop_token_ids=(3,)), number, EOS, limits).finish_reason
               for number in range(40)}
    assert reasons == {"stop", "length"}
