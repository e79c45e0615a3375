"""Tens of thousands of random arrivals, cancels, stop strings and preemptions over scheduler and cache.

Each step is checked for integrity, each row for reading exactly its own history, each token against the oracle.
"""

import itertools

import hypothesis.strategies as st
import pytest
from helpers.harness import Harness, Traffic, make_config
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

MODES = [
    (policy, chunked, in_flight, reuse, depth)
    for policy, chunked, in_flight, reuse, depth in itertools.product(
        ("max_utilization", "guaranteed_no_evict"), (True, False), (True, False), (True, False), (0, 1, 2))
    if in_flight or policy == "max_utilization"  # static batching reserves under either policy
]


@pytest.mark.parametrize(("policy", "chunked", "in_flight", "reuse", "depth"), MODES)
def test_random_traffic(policy, chunked, in_flight, reuse, depth):
    config = make_config(policy, chunked=chunked, in_flight=in_flight, reuse=reuse)
    seed = MODES.index((policy, chunked, in_flight, reuse, depth))
    num_preemptions = 0
    for num_blocks, is_eager, fail_at in ((12, False, ()), (22, True, tuple(range(50, 10_000, 61)))):
        harness = Harness(config, depth=depth, is_eager=is_eager, num_blocks=num_blocks, max_batch_size=6,
                          max_num_tokens=24, max_seq_len=44, max_input_len=43, fail_at=fail_at)
        traffic = Traffic(harness, seed=1000 * num_blocks + seed)
        while traffic.num_events["arrive"] < 400:
            for _ in range(traffic.rng.choice((0, 0, 0, 1, 3, 8))):
                traffic.arrive()
            for _ in range(traffic.rng.randint(1, 24)):
                harness.step(traffic.interrupt)
            traffic.forget_ended()
        harness.run()
        assert traffic.num_events["cancel"] > 10
        assert traffic.num_events["finish"] > 10
        assert (harness.scheduler.num_cached_tokens > 0) == reuse
        num_preemptions += harness.scheduler.num_preemptions
    if policy == "max_utilization" and in_flight:
        assert num_preemptions > 20
    else:
        assert num_preemptions == 0


class SchedulerMachine(RuleBasedStateMachine):
    """Hypothesis looks for short sequences of events that break something, and shrinks what it finds."""

    @initialize(policy=st.sampled_from(("max_utilization", "guaranteed_no_evict")), chunked=st.booleans(),
                in_flight=st.booleans(), reuse=st.booleans(), depth=st.integers(0, 2), is_eager=st.booleans(),
                num_blocks=st.integers(3, 10), max_num_tokens=st.integers(4, 12), seed=st.integers(0, 99),
                fail_at=st.sets(st.integers(0, 30), max_size=2), chunk=st.sampled_from((None, 1, 3, 20)))
    def start(self, policy, chunked, in_flight, reuse, depth, is_eager, num_blocks, max_num_tokens, seed, fail_at,
              chunk):
        config = make_config(policy, chunked=chunked, in_flight=in_flight, reuse=reuse, chunked_prefill_size=chunk)
        self.harness = Harness(config, depth=depth, is_eager=is_eager, num_blocks=num_blocks, max_batch_size=3,
                               max_num_tokens=max_num_tokens, max_seq_len=30, max_input_len=29, vocab_size=9,
                               fail_at=tuple(fail_at))
        self.traffic = Traffic(self.harness, seed, longest=16)

    @rule(num=st.integers(1, 3))
    def arrive(self, num):
        for _ in range(num):
            self.traffic.arrive()

    @rule()
    def cancel(self):
        self.traffic.cancel()

    @rule()
    def finish(self):
        self.traffic.finish()

    @rule(num=st.integers(1, 6))
    def step(self, num):
        for _ in range(num):
            self.harness.step()

    @precondition(lambda self: self.harness.scheduler.has_work())
    @rule()
    def step_interrupted(self):
        self.harness.step(self.traffic.interrupt)

    @invariant()
    def is_sound(self):
        if hasattr(self, "harness"):
            self.harness.check()

    def teardown(self):
        if hasattr(self, "harness"):
            self.harness.run()


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=80, stateful_step_count=40, deadline=None, derandomize=True,
                                         suppress_health_check=list(HealthCheck), database=None)
