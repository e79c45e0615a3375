"""The step loop over a runner that checks every token's history: synchronous and overlapped, failures, late ends."""

from __future__ import annotations

import random
from collections import defaultdict

import pytest
from helpers.fake_runner import FakeRunner, Limits, oracle
from helpers.harness import EOS, make_config, make_request

from pelton.engine.loop import EngineLoop
from pelton.errors import CapacityError, RequestError
from pelton.scheduler.scheduler import Scheduler
from pelton.types import Request, SamplingParams

NUM_REQUESTS = 1500
both_modes = pytest.mark.parametrize("overlap", [True, False], ids=["overlap", "sync"])


def make_loop(overlap=True, config=None, runner_class=FakeRunner, *, fail_at=(), **limits):
    limits = Limits(**limits)
    runner = runner_class(limits, eos_ids=EOS, fail_at=fail_at)
    return EngineLoop(Scheduler(limits, config or make_config()), runner, overlap=overlap, end_ids=EOS)


class Received:
    """What came of each completion."""

    def __init__(self):
        self.tokens = defaultdict(list)
        self.ends = {}
        self.errors = {}

    def take(self, outputs):
        for output in outputs:
            key = (output.request_id, output.index)
            assert key not in self.ends, f"news of {key} after its end"
            self.tokens[key] += output.token_ids
            if output.finish_reason is not None:
                self.ends[key] = output.finish_reason
                self.errors[key] = output.error


def run(loop, received=None):
    received = received or Received()
    for _ in range(20_000):
        if not loop.has_work():
            break
        received.take(loop.step())
        loop.scheduler.check_integrity()
    assert not loop.has_work()
    assert loop.scheduler.pool.num_used == 0
    return received


def expected(loop, request, index=0):
    return oracle(request, request.sampling_params.seed + index, EOS, loop.scheduler.limits)


def random_request(draw, **params):
    prompt = [draw.randrange(1, 50) for _ in range(draw.randint(1, 30))]
    return make_request(prompt, seed=draw.randrange(1000), max_tokens=draw.randint(1, 20), **params)


@both_modes
def test_every_request_yields_its_own_tokens(overlap):
    loop, draw = make_loop(overlap), random.Random(1)
    requests = [random_request(draw, n=draw.choice((1, 1, 3))) for _ in range(30)]
    for request in requests:
        loop.add(request)
    received = run(loop)
    for request in requests:
        for index in range(request.sampling_params.n):
            want = expected(loop, request, index)
            assert received.tokens[request.request_id, index] == want.token_ids
            assert received.ends[request.request_id, index] == want.finish_reason
    assert loop.num_steps == len(loop.runner.batches)


class Recorder(FakeRunner):
    """Writes down what is launched and asked for, in order."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.log = []

    def forward(self, batch):
        step = super().forward(batch)
        self.log.append(("forward", batch.step_id))
        ask = step.result

        def result():
            self.log.append(("result", batch.step_id))
            return ask()

        step.result = result
        return step

    def sample(self, step, masks):
        super().sample(step, masks)
        self.log.append(("sample", step.batch.step_id))


def test_overlap_launches_the_next_step_before_it_asks_for_the_last_ones_tokens():
    loop = make_loop(True, runner_class=Recorder)
    loop.add(make_request([1, 2, 3], max_tokens=3, ignore_eos=True))
    run(loop)
    assert loop.runner.log == [
        ("forward", 0), ("sample", 0),
        ("forward", 1), ("result", 0), ("sample", 1),  # step 1's draw may be masked by step 0's tokens
        ("forward", 2), ("result", 1), ("sample", 2), ("result", 2)]


@both_modes
def test_news_is_told_before_the_steps_own_tokens_are_drawn(overlap):
    events = []

    class Runner(FakeRunner):
        def sample(self, step, masks):
            events.append(f"sample {step.batch.step_id}")
            super().sample(step, masks)

    loop = make_loop(overlap, runner_class=Runner)
    loop.add(make_request([1, 2], max_tokens=3, ignore_eos=True))
    returned = []
    while loop.has_work():
        returned.append(len(loop.step(lambda news: events.append("news"))))
    if overlap:  # the last step's news comes when there is nothing more to launch
        assert events == ["sample 0", "news", "sample 1", "news", "sample 2"]
        assert returned == [0, 0, 0, 1]
    else:
        assert events == ["sample 0", "sample 1", "sample 2"]
        assert returned == [1, 1, 1]


def test_without_overlap_each_step_is_over_before_the_next_is_planned():
    loop = make_loop(False, runner_class=Recorder)
    loop.add(make_request([1, 2, 3], max_tokens=2, ignore_eos=True))
    run(loop)
    assert loop.runner.log == [("forward", 0), ("sample", 0), ("result", 0), ("forward", 1), ("sample", 1),
                               ("result", 1)]


@both_modes
def test_a_step_that_fails_ends_only_its_own_requests(overlap):
    loop = make_loop(overlap, make_config(reuse=False), fail_at=(4,), max_batch_size=2)
    draw = random.Random(2)
    requests = [make_request([draw.randrange(1, 50) for _ in range(6)], seed=i, max_tokens=8, ignore_eos=True)
                for i in range(6)]
    for request in requests:
        loop.add(request)
    received = run(loop)
    failed = [key for key, reason in received.ends.items() if reason == "error"]
    assert [key[0] for key in failed] == [request.request_id for request in requests[:2]]
    assert {received.errors[key] for key in failed} == {"RuntimeError: step 4 broke"}
    for request in requests[2:]:
        assert received.tokens[request.request_id, 0] == expected(loop, request).token_ids


@both_modes
def test_a_request_is_added_as_a_whole_or_not_at_all(overlap):
    loop = make_loop(overlap, make_config(max_queue_size=4))
    loop.add(make_request([1, 2], request_id="a", n=2))
    with pytest.raises(CapacityError, match="max_queue_size is 4"):
        loop.add(make_request([3, 4], request_id="b", n=3))
    with pytest.raises(RequestError, match="'a' is in use"):
        loop.add(make_request([3, 4], request_id="a", n=1))
    with pytest.raises(RequestError, match="at least one token"):
        loop.add(make_request([]))
    assert loop.scheduler.num_waiting == 2
    loop.add(make_request([3, 4], request_id="b", n=2))
    assert set(run(loop).ends) == {("a", 0), ("a", 1), ("b", 0), ("b", 1)}


@pytest.mark.parametrize(("seed", "seeds"), [
    (7, [7, 8, 9]), (-1, [-1, 0, 1]), (2**63 - 2, [2**63 - 2, 2**63 - 1, -(2**63)])])
def test_completion_i_draws_from_seed_plus_i(seed, seeds):
    loop = make_loop()
    loop.add(make_request([1, 2, 3], seed=seed, n=3, max_tokens=1))
    run(loop)
    assert [init.seed for batch in loop.runner.batches for init in batch.new] == seeds


def test_without_a_seed_each_request_draws_its_own():
    loop = make_loop()
    for _ in range(2):
        loop.add(make_request([1, 2, 3], max_tokens=1))
    run(loop)
    first, second = [init.seed for batch in loop.runner.batches for init in batch.new]
    assert first != second
    assert all(0 <= seed < 2**63 for seed in (first, second))


@pytest.mark.parametrize(("params", "end_ids", "want"), [
    ({}, (), EOS), ({}, (9, 8), (9, 8)), ({"ignore_eos": True}, (9,), ())])
def test_end_ids(params, end_ids, want):
    loop = make_loop()
    loop.add(Request([1, 2], sampling_params=SamplingParams(max_tokens=1, **params), end_ids=end_ids))
    run(loop)
    assert loop.runner.batches[0].new[0].end_ids == want


@both_modes
@pytest.mark.parametrize("num_steps", range(6))
def test_cancel_at_any_step(overlap, num_steps):
    loop, received = make_loop(overlap, max_num_tokens=8), Received()
    gone, stays = (make_request(prompt, request_id=name, max_tokens=5, ignore_eos=True, seed=3, n=2)
                   for name, prompt in (("gone", [1, 2, 3, 4, 5]), ("stays", [9, 8, 7])))
    loop.add(gone)
    loop.add(stays)
    for _ in range(num_steps):
        received.take(loop.step())
    told = loop.cancel("gone")
    received.take(told)
    assert {(output.index, output.finish_reason) for output in told} <= {(0, "cancelled"), (1, "cancelled")}
    assert loop.cancel("gone") == loop.cancel("nobody") == []
    run(loop, received)
    for index in range(2):
        assert received.tokens["stays", index] == expected(loop, stays, index).token_ids
        tokens = received.tokens["gone", index]
        assert tokens == expected(loop, gone, index).token_ids[:len(tokens)]
        assert received.ends["gone", index] in ("cancelled", "length")


@both_modes
def test_finish_ends_one_completion_without_news_and_does_not_count_late_tokens(overlap):
    loop, received = make_loop(overlap), Received()
    request = make_request([1, 2, 3], max_tokens=12, ignore_eos=True, seed=5, n=2)
    loop.add(request)
    while len(received.tokens[request.request_id, 0]) < 4:
        received.take(loop.step())
    loop.finish(request.request_id, 0, 2)
    loop.finish(request.request_id, 0, 2)
    loop.finish(request.request_id, 7, 2)
    loop.finish("nobody", 0, 1)
    received.ends[request.request_id, 0] = "stop"
    run(loop, received)
    assert received.ends[request.request_id, 1] == "length"
    assert received.tokens[request.request_id, 1] == expected(loop, request, 1).token_ids
    assert loop.stats().num_generated_tokens == 2 + 12


@both_modes
def test_finish_after_the_natural_end_changes_nothing(overlap):
    loop = make_loop(overlap)
    request = make_request([1, 2, 3], max_tokens=2, ignore_eos=True)
    loop.add(request)
    assert run(loop).ends == {(request.request_id, 0): "length"}
    loop.finish(request.request_id, 0, 1)
    assert loop.stats().num_generated_tokens == 2


@both_modes
def test_stats(overlap):
    loop = make_loop(overlap, max_batch_size=2)
    empty = loop.stats()
    assert (empty.num_steps, empty.step_host_ms, empty.num_blocks_used, empty.num_blocks_free) == (0, 0.0, 0, 64)
    for i in range(3):
        loop.add(make_request([i, 2, 3, 4, 5], max_tokens=4, ignore_eos=True))
    loop.step()
    busy = loop.stats()
    assert (busy.num_running, busy.num_waiting, busy.num_steps) == (2, 1, 1)
    assert busy.num_blocks_used == 4
    assert busy.step_host_ms > 0
    run(loop)
    after = loop.stats()
    assert (after.num_running, after.num_waiting, after.num_blocks_used, after.num_blocks_free) == (0, 0, 0, 64)
    assert (after.num_prompt_tokens, after.num_generated_tokens) == (15, 12)
    assert after.num_blocks_cached > 0


def test_drain_launches_nothing():
    loop = make_loop(True)
    loop.add(make_request([1, 2, 3], max_tokens=4, ignore_eos=True))
    assert loop.step() == []
    assert len(loop.drain()[0].token_ids) == 1
    assert loop.drain() == []
    assert loop.num_steps == 1


@both_modes
@pytest.mark.parametrize("policy", ["max_utilization", "guaranteed_no_evict"])
def test_two_thousand_mixed_requests_give_everything_back(overlap, policy):
    """Cancels, stop strings, failing steps and more work than memory; every completion has one end, all tokens fit."""
    config = make_config(policy, max_queue_size=64)
    loop = make_loop(overlap, config, fail_at=range(50, 10_000, 97), max_batch_size=8, num_blocks=40)
    draw, received, requests = random.Random(4), Received(), {}
    while len(requests) < NUM_REQUESTS or loop.has_work():
        while len(requests) < NUM_REQUESTS:
            request = random_request(draw, n=draw.choice((1, 2, 3)), ignore_eos=draw.random() < 0.3,
                                     prompt_logprobs=draw.choice((None, None, None, 0)))
            try:
                loop.add(request)
            except CapacityError:
                break
            requests[request.request_id] = request
        received.take(loop.step())
        live = [key for key in received.tokens if key not in received.ends]
        if live and draw.random() < 0.1:
            received.take(loop.cancel(draw.choice(live)[0]))
        if live and draw.random() < 0.2:
            key = draw.choice(live)
            if key not in received.ends and received.tokens[key]:
                del received.tokens[key][draw.randint(1, len(received.tokens[key])):]
                loop.finish(*key, len(received.tokens[key]))
                received.ends[key] = "stop"
        if loop.num_steps % 16 == 0:
            loop.scheduler.check_integrity()
    assert loop.scheduler.pool.num_used == 0
    assert loop.stats().num_preemptions > 0 or policy != "max_utilization"
    assert len(received.ends) == sum(request.sampling_params.n for request in requests.values())
    assert len(received.ends) >= 2000
    assert {"cancelled", "stop", "length", "error"} == set(received.ends.values())
    for (request_id, index), tokens in received.tokens.items():
        want = expected(loop, requests[request_id], index)
        assert tokens == want.token_ids[:len(tokens)]
        if received.ends[request_id, index] == "length":
            assert tokens == want.token_ids
