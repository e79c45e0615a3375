import msgspec
from helpers.bench import later, request, result, spec

from pelton.bench.peak import peak
from pelton.bench.results import CellResult
from pelton.bench.summary import recompute


def test_recomputing_brings_everything_back_but_what_the_requests_do_not_know():
    made = result([(spec(num_requests=2), [request(), later(request(was_cancelled=True), 20_000, index=1)])])
    (cell,) = made.cells
    assert (cell.num_done, cell.num_cancelled, cell.errors, cell.status) == (2, 1, {}, "complete")
    emptied = msgspec.structs.replace(cell, metrics={}, num_done=0, num_cancelled=0, peak_in_flight=0)
    assert recompute(msgspec.structs.replace(made, cells=[emptied], metrics=[])) == made


def test_a_cell_with_a_reason_to_stop_or_too_few_requests_is_partial():
    made = result([(spec(num_requests=2), [request()])])
    assert made.cells[0].status == "partial"
    stopped = msgspec.structs.replace(made.cells[0], stop_reason="the time budget was spent")
    again: CellResult = recompute(msgspec.structs.replace(made, cells=[stopped])).cells[0]
    assert (again.status, again.stop_reason) == ("partial", "the time budget was spent")


def test_requests_that_touch_are_not_in_flight_together():
    assert peak([(0, 10), (10, 20)]) == 1
    assert peak([(0, 11), (10, 20)]) == 2
    assert peak([]) == 0
