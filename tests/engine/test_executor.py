"""The executor over a runner without a model: waiting, ids, callbacks, ends of all kinds, and faults of the loop."""

from __future__ import annotations

import itertools
import math
import random
import subprocess
import sys
import threading
from collections import defaultdict
from pathlib import Path

import msgspec
import numpy as np
import pytest
from helpers.fake_runner import FakeRunner, Limits, oracle
from helpers.harness import EOS, make_config, make_request

from pelton.engine.executor import Executor
from pelton.engine.loop import EngineLoop
from pelton.errors import CapacityError, EngineDeadError, PeltonError, RequestError
from pelton.scheduler.scheduler import Scheduler
from pelton.types import Request

WAIT_S = 20.0


class GatedRunner(FakeRunner):
    """Steps do not complete while it is held, beyond those let through; a launch can be made to break the loop."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.breaks = False
        self._num_let: float = math.inf
        self._gate = threading.Condition()

    def hold(self):
        self.let(0)

    def let(self, num_steps):
        with self._gate:
            self._num_let = num_steps
            self._gate.notify_all()

    def open(self):
        self.let(math.inf)

    def forward(self, batch):
        if self.breaks:
            raise ZeroDivisionError("the device is on fire")
        step = super().forward(batch)
        ask = step.result

        def result():
            with self._gate:
                assert self._gate.wait_for(lambda: self._num_let > 0, WAIT_S)
                self._num_let -= 1
            return ask()

        step.result = result
        return step


@pytest.fixture(params=[True, False], ids=["overlap", "sync"])
def overlap(request):
    return request.param


@pytest.fixture
def start(overlap):
    """Makes executors and ends them."""
    made = []

    def start(config=None, *, fail_at=(), **limits):
        limits = Limits(**limits)
        runner = GatedRunner(limits, eos_ids=EOS, fail_at=fail_at)
        loop = EngineLoop(Scheduler(limits, config or make_config()), runner, overlap=overlap, end_ids=EOS)
        made.append((Executor(loop), runner))
        return made[-1]

    yield start
    for executor, runner in made:
        runner.open()
        executor.shutdown()
        assert not executor._thread.is_alive()
        assert runner.is_closed


def oracle_tokens(executor, request, index=0):
    return oracle(request, request.sampling_params.seed + index, EOS, executor.loop.scheduler.limits).token_ids


def read(executor, request_id, num=1):
    """(tokens, finish reasons) by completion, waiting for `num` ends."""
    tokens, ends = defaultdict(list), {}
    while len(ends) < num:
        outputs = executor.await_response(request_id, timeout=WAIT_S)
        assert outputs, "no news in time"
        for output in outputs:
            tokens[output.index] += output.token_ids
            if output.finish_reason is not None:
                ends[output.index] = output.finish_reason
    return dict(tokens), ends


def long_request(**options):
    return make_request([1, 2, 3], **{"max_tokens": 50, "ignore_eos": True, "seed": 5, **options})


def in_thread(target):
    """Runs it on another thread; `.result` is what it returned or raised."""

    def run():
        try:
            thread.result = target()
        except BaseException as error:
            thread.result = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def joined(thread):
    thread.join(WAIT_S)
    assert not thread.is_alive()
    return thread.result


def test_tokens_come_in_order_and_the_id_is_free_afterwards(start):
    executor, _ = start()
    request = make_request([1, 2, 3], max_tokens=9, n=2, seed=4, request_id="mine")
    for _ in range(2):
        assert executor.enqueue_request(request) == "mine"
        tokens, _ = read(executor, "mine", 2)
        assert tokens == {index: oracle_tokens(executor, request, index) for index in range(2)}
    with pytest.raises(RequestError, match="'mine' is not known"):
        executor.await_response("mine")


def test_an_id_in_use_is_refused_and_its_owner_goes_on(start):
    executor, runner = start()
    runner.hold()
    request = make_request([1, 2, 3], max_tokens=4, ignore_eos=True, seed=1, request_id="mine")
    executor.enqueue_request(request)
    with pytest.raises(RequestError, match="'mine' is in use"):
        executor.enqueue_request(make_request([4], request_id="mine"))
    runner.open()
    assert read(executor, "mine")[0] == {0: oracle_tokens(executor, request)}


def test_await_response_gives_up_after_its_timeout(start):
    executor, runner = start()
    runner.hold()
    request_id = executor.enqueue_request(long_request(max_tokens=2))
    for timeout in (0, -1, 0.01):
        assert executor.await_response(request_id, timeout) == []
    runner.open()
    read(executor, request_id)


@pytest.mark.parametrize(("field", "value", "match"), [
    ("input_token_ids", [], "at least one token"),
    ("input_token_ids", [1.5], r"input_token_ids\[0\]: Expected `int`"),
    ("input_token_ids", [1, "2"], r"input_token_ids\[1\]: Expected `int`"),
    ("input_token_ids", None, "input_token_ids: Expected `array`"),
    ("input_token_ids", "text", "input_token_ids: Expected `array`"),
    ("input_token_ids", np.array([1, 2]), "numpy"),
    ("input_token_ids", [2**70], "can't serialize ints"),
    ("input_token_ids", [-1], "0 to 49, got -1"),
    ("input_token_ids", [1, 50], "0 to 49, got 50"),
    ("input_token_ids", [1] * 64, "63 fit"),
    ("end_ids", ("a",), r"end_ids\[0\]"),
    ("end_ids", (50,), "end_ids"),
    ("priority", "high", "priority: Expected `int`"),
    ("cache_salt", 5, "cache_salt: Expected `str`"),
    ("cache_salt", "\ud800", "surrogates"),
    ("request_id", 5, "request_id: Expected `str`"),
    ("arrival_time", float("nan"), "arrival_time"),
    ("sampling_params", {"bogus": 1}, "sampling_params"),
])
def test_a_request_of_wrong_types_is_refused_by_name(start, field, value, match):
    executor, _ = start()
    request = make_request([1, 2], max_tokens=2)
    setattr(request, field, value)
    with pytest.raises(RequestError, match=match):
        executor.enqueue_request(request)
    read(executor, executor.enqueue_request(make_request([1, 2], max_tokens=2)))


def test_the_callers_object_may_change_after_it_is_queued(start):
    executor, runner = start()
    runner.hold()
    request = make_request([1, 2, 3], max_tokens=6, ignore_eos=True, seed=1)
    want = oracle_tokens(executor, request)
    request_id = executor.enqueue_request(request)
    request.input_token_ids[:] = [10**9]
    runner.open()
    assert read(executor, request_id)[0] == {0: want}


def test_a_full_queue_is_an_error_at_the_door_or_in_the_news(start):
    executor, runner = start(make_config(max_queue_size=4), max_batch_size=1)
    runner.hold()
    running = executor.enqueue_request(long_request())
    while not executor.loop.has_work():  # the engine's thread is held by the gate as soon as it has taken it
        pass
    waiting = [executor.enqueue_request(make_request([i], max_tokens=2, n=2, ignore_eos=True)) for i in range(3)]
    with pytest.raises(CapacityError, match="max_queue_size is 4"):
        executor.enqueue_request(make_request([1], n=5))
    runner.open()
    executor.cancel(running)
    ends = [read(executor, request_id, 2) if i < 2 else executor.await_response(request_id, WAIT_S)
            for i, request_id in enumerate(waiting)]
    assert [end[1] for end in ends[:2]] == [{0: "length", 1: "length"}] * 2
    assert [(o.index, o.finish_reason, o.error_kind) for o in ends[2]] == [
        (0, "error", "CapacityError"), (1, "error", "CapacityError")]


@pytest.mark.parametrize("num_read", [0, 1, 3])
def test_cancel_tells_the_end_once(start, num_read):
    executor, _ = start()
    request = long_request(n=2)
    request_id = executor.enqueue_request(request)
    tokens, ends = defaultdict(list), []
    while sum(map(len, tokens.values())) < num_read:
        for output in executor.await_response(request_id, WAIT_S):
            tokens[output.index] += output.token_ids
            ends += [output.finish_reason] * (output.finish_reason is not None)
    executor.cancel(request_id)
    executor.cancel(request_id)
    while len(ends) < 2:
        for output in executor.await_response(request_id, WAIT_S):
            tokens[output.index] += output.token_ids
            ends += [output.finish_reason] * (output.finish_reason is not None)
    assert set(ends) <= {"cancelled", "length"}
    for index, got in tokens.items():
        assert got == oracle_tokens(executor, request, index)[:len(got)]
    executor.cancel(request_id)
    executor.cancel("nobody")
    assert executor.stats().num_blocks_used == 0


def test_finish_drops_what_was_not_read_and_leaves_the_other_completion(start):
    executor, runner = start()
    runner.let(4)
    request_id = executor.enqueue_request(long_request(n=2, max_tokens=8))
    assert executor.await_response(request_id, WAIT_S)
    executor.finish(request_id, 0, 1)
    runner.open()
    tokens, ends = read(executor, request_id, 1)
    assert ends == {1: "length"}
    assert 0 not in tokens
    with pytest.raises(RequestError, match="not known"):
        executor.await_response(request_id)
    executor.finish(request_id, 0, 1)
    assert executor.stats().num_running == 0


def test_finish_after_an_end_that_was_not_read(start):
    executor, _ = start()
    request_id = executor.enqueue_request(make_request([1, 2], max_tokens=3, ignore_eos=True))
    while executor.stats().num_generated_tokens < 3:
        pass
    executor.finish(request_id, 0, 2)
    with pytest.raises(RequestError, match="not known"):
        executor.await_response(request_id)
    assert executor.enqueue_request(make_request([1], max_tokens=1, request_id=request_id)) == request_id


def test_finish_wakes_a_thread_that_waits_for_the_same_request(start):
    executor, runner = start()
    runner.hold()
    request_id = executor.enqueue_request(long_request())
    waiter = in_thread(lambda: executor.await_response(request_id))
    executor.finish(request_id, 0, 1)
    assert isinstance(joined(waiter), RequestError)


def test_two_threads_may_read_one_request(start):
    executor, _ = start()
    request = long_request()
    request_id = executor.enqueue_request(request)

    def read_all():
        tokens = []
        try:
            while True:
                tokens += [token for output in executor.await_response(request_id, WAIT_S)
                           for token in output.token_ids]
        except RequestError:
            return tokens

    readers = [in_thread(read_all) for _ in range(2)]
    assert sorted(itertools.chain.from_iterable(map(joined, readers))) == sorted(oracle_tokens(executor, request))


# Callbacks.


class Collector:
    """A callback that can be waited for."""

    def __init__(self, num_ends=1):
        self.outputs = []
        self.done = threading.Event()
        self._num_ends = num_ends

    def __call__(self, outputs):
        self.outputs += outputs
        if sum(output.finish_reason is not None for output in self.outputs) >= self._num_ends:
            self.done.set()

    def wait(self):
        assert self.done.wait(WAIT_S)
        return self.outputs


def test_a_callback_gets_everything(start):
    executor, _ = start()
    request, news = long_request(n=2, max_tokens=7), Collector(2)
    request_id = executor.enqueue_request(request, news)
    with pytest.raises(RequestError, match="has a callback"):
        executor.await_response(request_id)
    for index in range(2):
        got = [token for output in news.wait() if output.index == index for token in output.token_ids]
        assert got == oracle_tokens(executor, request, index)
    assert executor.enqueue_request(request, news) == request_id


def test_a_callback_that_raises_ends_only_its_own_requests(start, caplog):
    executor, runner = start()
    runner.hold()

    def broken(outputs):
        raise KeyError("not mine")

    bad = executor.enqueue_request(long_request(), broken)
    good, news = long_request(seed=8), Collector()
    executor.enqueue_request(good, news)
    runner.open()
    tokens = [token for output in news.wait() for token in output.token_ids]
    assert tokens == oracle_tokens(executor, good)
    assert "a callback failed" in caplog.text
    assert executor.stats().num_running == 0
    assert executor.enqueue_request(make_request([1], max_tokens=1, request_id=bad)) == bad


def test_a_callback_may_call_the_executor(start):
    executor, _ = start()
    second, seen = Collector(), []

    def first(outputs):
        seen.append(executor.stats())
        if not second.outputs and len(seen) == 1:
            executor.enqueue_request(long_request(max_tokens=3), second)
            executor.cancel(outputs[0].request_id)
            executor.cancel("nobody")

    executor.enqueue_request(long_request(), first)
    assert sum(len(output.token_ids) for output in second.wait()) == 3
    assert seen[0].num_running == 1


def test_a_callback_may_shut_the_executor_down(start):
    executor, runner = start()
    ended = threading.Event()

    def news(outputs):
        if outputs[0].finish_reason == "error":
            ended.set()
        executor.shutdown()

    executor.enqueue_request(long_request(), news)
    assert ended.wait(WAIT_S)
    executor.shutdown()
    assert runner.is_closed


def test_an_unhashable_callback(start):
    class Unhashable(Collector):
        __hash__ = None

    executor, _ = start()
    news = Unhashable()
    executor.enqueue_request(long_request(max_tokens=2), news)
    news.wait()


# The end of the engine.


def test_a_fault_of_the_loop_reaches_everybody_who_waits(start):
    executor, runner = start()
    runner.hold()
    news = Collector(2)
    awaited = executor.enqueue_request(long_request())
    called = executor.enqueue_request(long_request(n=2), news)
    waiter = in_thread(lambda: executor.await_response(awaited))
    asker = in_thread(lambda: executor.stats())
    runner.breaks = True
    runner.open()
    executor.enqueue_request(make_request([1]))
    while not isinstance(result := joined(waiter), Exception):  # tokens that came before
        waiter = in_thread(lambda: executor.await_response(awaited))
    assert isinstance(result, EngineDeadError)
    assert "the device is on fire" in str(result)
    told = [o for o in news.wait() if o.finish_reason is not None]
    assert {(o.request_id, o.index, o.finish_reason, o.error_kind) for o in told} == {
        (called, index, "error", "EngineDeadError") for index in range(2)}
    joined(asker)
    for call in (lambda: executor.enqueue_request(make_request([1])), executor.stats,
                 lambda: executor.run([make_request([1])], lambda output: None)):
        with pytest.raises(EngineDeadError, match="on fire"):
            call()
    executor.cancel(awaited)
    executor.finish(awaited, 0, 1)
    executor.shutdown()
    assert runner.is_closed


def test_shutdown_with_requests_under_way(start):
    executor, runner = start()
    runner.hold()
    news = Collector()
    request_id = executor.enqueue_request(long_request())
    executor.enqueue_request(long_request(), news)
    waiter = in_thread(lambda: read(executor, request_id))
    stopper = in_thread(executor.shutdown)
    runner.open()
    joined(stopper)
    executor.shutdown()
    assert isinstance(joined(waiter), EngineDeadError)
    assert news.wait()[-1].error == "the engine stopped: it was shut down"
    with pytest.raises(EngineDeadError, match="shut down"):
        executor.enqueue_request(make_request([1]))


def test_as_a_context_manager(start):
    executor, runner = start()
    with executor as entered:
        assert entered is executor
        read(executor, executor.enqueue_request(make_request([1, 2], max_tokens=2)))
    assert runner.is_closed


@pytest.mark.parametrize("is_busy", [False, True])
def test_the_interpreter_ends_although_nobody_shut_down(is_busy):
    code = f"""
from helpers.fake_runner import FakeRunner, Limits
from pelton.config import ExecutorConfig
from pelton.engine.executor import Executor
from pelton.engine.loop import EngineLoop
from pelton.scheduler.scheduler import Scheduler
from pelton.types import Request, SamplingParams
limits = Limits(max_seq_len=100_000, num_blocks=30_000)
executor = Executor(EngineLoop(Scheduler(limits), FakeRunner(limits)))
if {is_busy}:
    params = SamplingParams(max_tokens=None, ignore_eos=True)
    executor.await_response(executor.enqueue_request(Request([1, 2], sampling_params=params)))
print("end of the program")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60,
                          cwd=Path(__file__).parents[1])
    assert (done.returncode, done.stdout, done.stderr) == (0, "end of the program\n", "")


# run: whole sets of requests.


def run_all(executor, requests):
    tokens = defaultdict(list)
    executor.run(requests, lambda output: tokens[output.request_id, output.index].extend(output.token_ids))
    return tokens


def test_run_takes_more_requests_than_the_queue_holds(start):
    executor, _ = start(make_config(max_queue_size=6), max_batch_size=3)
    draw = random.Random(5)
    requests = [make_request([draw.randrange(50) for _ in range(5)], n=draw.choice((1, 2, 3)), seed=i, max_tokens=6)
                for i in range(60)]
    tokens = run_all(executor, requests)
    for request in requests:
        for index in range(request.sampling_params.n):
            assert tokens[request.request_id, index] == oracle_tokens(executor, request, index)
    executor.run([], lambda output: None)


def test_run_ends_a_completion_where_take_says(start):
    executor, _ = start()
    seen = defaultdict(list)

    def take(output):
        seen[output.index] += output.token_ids
        return 3 if output.index == 0 and len(seen[0]) == 3 else None

    executor.run([long_request(n=2)], take)
    assert {index: len(tokens) for index, tokens in seen.items()} == {0: 3, 1: 50}


def test_run_raises_what_take_raises_and_cancels_the_rest(start):
    executor, _ = start()

    def take(output):
        raise KeyError("enough")

    with pytest.raises(KeyError):
        executor.run([long_request() for _ in range(5)], take)
    run_all(executor, [long_request()])
    assert executor.stats().num_running == executor.stats().num_waiting == 0


def test_run_raises_when_the_engine_fails_at_a_request(start):
    executor, _ = start(fail_at=(2,))
    with pytest.raises(PeltonError, match="step 2 broke"):
        run_all(executor, [long_request(seed=i) for i in range(3)])
    request = long_request()
    assert run_all(executor, [request])[request.request_id, 0] == oracle_tokens(executor, request)


def test_run_raises_when_it_is_shut_down(start):
    executor, runner = start()
    runner.hold()
    runner_thread = in_thread(lambda: run_all(executor, [long_request()]))
    stopper = in_thread(executor.shutdown)
    runner.open()
    joined(stopper)
    assert isinstance(joined(runner_thread), EngineDeadError)


def test_four_threads_with_two_thousand_mixed_requests_give_everything_back(start):
    executor, _ = start(fail_at=range(100, 10_000, 211), max_batch_size=16, num_blocks=60)
    ends = defaultdict(int)

    def work(seed):
        draw = random.Random(seed)
        for _ in range(100):
            requests = [make_request([draw.randrange(50) for _ in range(draw.randint(1, 20))], seed=draw.randrange(99),
                                     max_tokens=draw.randint(1, 9), n=draw.choice((1, 1, 2))) for _ in range(5)]
            ids = [executor.enqueue_request(request) for request in requests]
            for i, (request, request_id) in enumerate(zip(requests, ids, strict=True)):
                if draw.random() < 0.1:
                    executor.cancel(request_id)
                if draw.random() < 0.1:
                    executor.finish(request_id, 0, 1)
                    if request.sampling_params.n == 1:
                        continue
                tokens = defaultdict(list)
                try:
                    while True:
                        for output in executor.await_response(request_id, WAIT_S):
                            tokens[output.index] += output.token_ids
                            ends[output.finish_reason] += 1
                except RequestError:  # read to its end
                    pass
                for index, got in tokens.items():
                    assert got == oracle_tokens(executor, request, index)[:len(got)], (seed, i)
        return None

    workers = [in_thread(lambda seed=seed: work(seed)) for seed in range(4)]
    assert [joined(worker) for worker in workers] == [None] * 4
    assert {"cancelled", "stop", "length", "error"} <= set(ends)
    while (stats := executor.stats()).num_running:
        pass
    assert (stats.num_waiting, stats.num_blocks_used) == (0, 0)
    executor.loop.scheduler.check_integrity()


def test_requests_are_copied_as_the_engine_process_would_read_them(start):
    executor, _ = start()
    request = Request([1, 2], max_new_tokens=3, priority=2, end_ids=(4,), cache_salt="x")
    copy = executor.validate(request)
    assert copy.input_token_ids is not request.input_token_ids
    assert msgspec.to_builtins(copy) == msgspec.to_builtins(request)
