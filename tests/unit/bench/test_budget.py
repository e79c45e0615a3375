import pytest
from helpers.bench import spec
from hypothesis import given
from hypothesis import strategies as st

from pelton.bench.budget import Budget, known_s
from pelton.bench.client import now_ns
from pelton.bench.load.stages import read_stages
from pelton.bench.results import LoadSpec


def share(budget, remaining):
    """Share of the time left that the first cell gets."""
    now = now_ns()
    return (budget.deadline_ns(remaining) - now) / (budget.end_ns - now)


def test_time_is_shared_out_by_size_and_savings_go_on():
    small, large = spec(concurrency=8, prompt_tokens=16), spec(concurrency=1, prompt_tokens=900)
    budget = Budget(now_ns() + 10**12)
    assert 0 < share(budget, [small, large]) < 0.1
    assert share(budget, [large]) == pytest.approx(1, abs=1e-4)
    assert Budget(None).deadline_ns([small]) is None
    assert Budget(None).has_time()
    assert not Budget(now_ns() - 1).has_time()


@given(a=st.floats(1e-6, 1e-3), b=st.floats(1e-4, 0.1))
def test_two_unlike_cells_teach_both_costs(a, b):
    budget = Budget(None)
    for cell in (spec(prompt_tokens=900, output_tokens=2), spec(prompt_tokens=16, output_tokens=300),
                 spec(prompt_tokens=300, output_tokens=64, num_requests=5)):
        count = cell.load.num_requests
        budget.learn(cell, a * count * cell.prompt_tokens + b * count * cell.output_tokens, 1.0)
    other = spec(prompt_tokens=600, output_tokens=100, num_requests=3)
    assert budget.estimate_s(other) == pytest.approx(3 * (600 * a + 100 * b), rel=0.05)


def test_one_cell_teaches_its_own_size():
    budget = Budget(None)
    budget.learn(spec(num_requests=4), 8.0, 1.0)
    assert budget.estimate_s(spec(num_requests=8)) == pytest.approx(16, rel=0.01)
    budget = Budget(None)
    budget.learn(spec(num_requests=4), 4.0, 0.5)
    assert budget.estimate_s(spec(num_requests=4)) == pytest.approx(8, rel=0.01)


def test_costs_are_never_negative():
    budget = Budget(None)
    budget.learn(spec(prompt_tokens=900, output_tokens=2), 0.1, 1.0)
    budget.learn(spec(prompt_tokens=16, output_tokens=300), 60.0, 1.0)
    budget.learn(spec(prompt_tokens=1800, output_tokens=2), 0.05, 1.0)
    assert budget.estimate_s(spec(prompt_tokens=100_000, output_tokens=1)) >= 0
    assert budget.estimate_s(spec(prompt_tokens=1, output_tokens=1000)) >= 0


@pytest.mark.parametrize(("load", "seconds"), [
    (LoadSpec(kind="poisson", rate=2.0, num_requests=10), 5.0),
    (LoadSpec(kind="constant", rate=2.0, duration_s=7.0), 7.0),
    (LoadSpec(kind="stages", stages=read_stages("1:3,1-2:4")), 7.0),
    (LoadSpec(kind="closed", concurrency=4, duration_s=9.0), 9.0)])
def test_loads_by_the_clock_need_no_estimate(load, seconds):
    made = spec(load=load)
    assert known_s(made) == seconds
    assert Budget(None).estimate_s(made) == seconds


def test_there_is_room_for_a_trial_by_the_larger_estimate():
    budget = Budget(now_ns() + 10 * 10**9)
    budget.learn(spec(num_requests=4), 4.0, 1.0)
    assert budget.has_room_for(spec(num_requests=8), at_least_s=1.0)
    assert not budget.has_room_for(spec(num_requests=8), at_least_s=9.5)
    assert not budget.has_room_for(spec(num_requests=10), at_least_s=1.0)
    assert not Budget(None).has_room_for(spec(num_requests=1), at_least_s=0.0)
