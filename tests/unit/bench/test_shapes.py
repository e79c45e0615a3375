import itertools

import pytest

from pelton.bench.load.shapes import Size, make_shapes
from pelton.bench.load.trace import TraceRequest
from pelton.bench.results import LoadSpec

TRACE = [TraceRequest(0.0, 700, 4, (1, 2)), TraceRequest(2.0, 600, 0, (1, 3)), TraceRequest(6.0, 90, 2, (4,))]


def shapes(load, *, num_warmup=0, seed="s", is_stream=True, **options):
    return make_shapes(load, sizes=itertools.repeat(Size(16, 9)), num_warmup=num_warmup, is_stream=is_stream, seed=seed,
                       **options)


def test_warm_up_comes_first_and_counts_for_itself():
    made = list(shapes(LoadSpec(kind="closed", concurrency=2, num_requests=3), num_warmup=2))
    assert [(s.is_warmup, s.index) for s in made] == [(True, 0), (True, 1), (False, 0), (False, 1), (False, 2)]
    assert {(s.prompt_tokens, s.output_tokens, s.due_ns) for s in made} == {(16, 9, None)}


def test_closed_loop_by_time_has_no_end():
    made = shapes(LoadSpec(kind="closed", concurrency=2, duration_s=1.0))
    assert len(list(itertools.islice(made, 1000))) == 1000


def test_open_loop_by_time_holds_the_arrivals_of_that_time_after_warm_up():
    made = list(shapes(LoadSpec(kind="constant", rate=10.0, duration_s=2.0), num_warmup=5))
    assert [s.due_ns for s in made] == [round(i * 1e8) for i in range(25)]
    assert sum(s.is_warmup for s in made) == 5


def test_equal_seeds_make_equal_shapes():
    load = LoadSpec(kind="poisson", rate=10.0, num_requests=20, cancellation_rate=0.5)
    assert list(shapes(load, seed="a")) == list(shapes(load, seed="a"))
    assert list(shapes(load, seed="a")) != list(shapes(load, seed="b"))


def test_cancelling_changes_no_arrival():
    loads = [LoadSpec(kind="poisson", rate=10.0, num_requests=50, cancellation_rate=rate) for rate in (0.0, 0.5)]
    one, two = (list(shapes(load)) for load in loads)
    assert [s.due_ns for s in one] == [s.due_ns for s in two]


def test_share_and_place_of_cancellations():
    made = list(shapes(LoadSpec(kind="closed", concurrency=1, num_requests=4000, cancellation_rate=0.25),
                       num_warmup=100))
    places = [s.cancel_after_events for s in made if s.cancel_after_events is not None]
    assert abs(len(places) - 1000) < 5 * (4000 * 0.25 * 0.75) ** 0.5
    assert set(places) == set(range(1, 9))
    assert all(s.cancel_after_events is None for s in made if s.is_warmup)


@pytest.mark.parametrize(("is_stream", "delay", "most_ns"), [(True, 0.5, 5e8), (False, 0.5, 5e8), (False, None, 1e9)])
def test_cancellations_by_time(is_stream, delay, most_ns):
    load = LoadSpec(kind="closed", concurrency=1, num_requests=400, cancellation_rate=1.0)
    made = list(shapes(load, is_stream=is_stream, cancellation_delay_s=delay))
    assert all(s.cancel_after_events is None and 0 <= s.cancel_after_ns <= most_ns for s in made)
    assert max(s.cancel_after_ns for s in made) > 0.9 * most_ns


def test_traces_bring_their_own_times_and_sizes():
    made = list(shapes(LoadSpec(kind="trace", speed_up=2.0), trace=TRACE))
    assert [(s.due_ns, s.prompt_tokens, s.output_tokens, s.prefix_tokens, s.blocks) for s in made] == [
        (0, 700, 4, 512, (1, 2)), (1_000_000_000, 600, 1, 512, (1, 3)), (3_000_000_000, 90, 2, 0, (4,))]
    assert [s.index for s in shapes(LoadSpec(kind="trace", num_requests=2), trace=TRACE)] == [0, 1]
    assert [s.index for s in shapes(LoadSpec(kind="trace", duration_s=5.0), trace=TRACE)] == [0, 1]


def test_stages_name_their_requests():
    from pelton.bench.load.stages import read_stages

    made = list(shapes(LoadSpec(kind="stages", stages=read_stages("20:5,40:5"))))
    assert {s.stage for s in made} == {"1: 20/s", "2: 40/s"}
    assert all((s.due_ns < 5e9) == (s.stage == "1: 20/s") for s in made)
