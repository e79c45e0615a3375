"""Priorities, first come first served, and why nobody starves."""

from helpers.harness import Harness, make_config

from pelton.scheduler.ranking import AGING_S


def admitted(harness):
    """Request numbers in the order of admission, told by their prompts."""
    return [init.token_ids[0] for batch in harness.runner.batches for init in batch.new]


def test_first_come_first_served():
    harness = Harness(depth=0, max_batch_size=1)
    for number in (3, 1, 2):
        harness.add([number], max_tokens=1)
    harness.run()
    assert admitted(harness) == [3, 1, 2]


def test_higher_priority_first():
    harness = Harness(depth=0, max_batch_size=1)
    for number, priority in ((1, 0), (2, 5), (3, -1), (4, 5)):
        harness.add([number], max_tokens=1, priority=priority)
    harness.run()
    assert admitted(harness) == [2, 4, 1, 3]


def test_waiting_makes_up_for_priority():
    harness = Harness(depth=0, max_batch_size=1)
    harness.add([1], max_tokens=1, arrival_time=100.0)
    harness.add([2], max_tokens=1, arrival_time=100.0 + AGING_S - 1, priority=1)
    harness.add([3], max_tokens=1, arrival_time=100.0 + AGING_S + 1, priority=1)
    harness.run()
    assert admitted(harness) == [2, 1, 3]


def test_endless_important_traffic_does_not_starve_the_rest():
    harness = Harness(depth=1, max_batch_size=2)
    patient = harness.add([1], max_tokens=3, arrival_time=0.5)
    for number in range(200):
        harness.add([2 + number % 40], max_tokens=3, priority=2, arrival_time=float(1 + number))
        harness.step()
    assert harness.completions[patient, 0].finish_reason is not None


def test_one_that_finds_no_room_is_not_passed_over():
    harness = Harness(make_config(reuse=False), depth=0, num_blocks=10)
    harness.add([1] * 20, max_tokens=15, ignore_eos=True)
    harness.step()
    harness.add([2] * 30, max_tokens=2)  # 8 blocks; 5 are free
    for number in (3, 4, 5):
        harness.add([number], max_tokens=1)  # these would fit
    harness.run()
    assert admitted(harness) == [1, 2, 3, 4, 5]


def test_a_preempted_one_goes_back_to_its_place():
    harness = Harness(depth=0, num_blocks=6, max_batch_size=2)
    harness.add([1] * 4, max_tokens=20, ignore_eos=True)
    harness.add([2] * 4, max_tokens=20, ignore_eos=True)
    harness.add([3] * 4, max_tokens=2, ignore_eos=True)
    harness.run()
    order = admitted(harness)
    assert order[:2] == [1, 2]
    assert order[-1] == 3
    assert set(order[2:-1]) == {2}


def test_chunks_go_to_the_first_in_order():
    harness = Harness(depth=0, max_num_tokens=8)
    harness.add([1] * 12, max_tokens=1)
    harness.step()
    harness.add([2] * 6, max_tokens=1, priority=1)
    assert harness.step().num_tokens == [6, 2]
    harness.run()
