import msgspec
import pytest
from helpers.bench import later, request, result, spec

from pelton.bench.audit import verdicts
from pelton.bench.results import LoadSpec
from pelton.bench.table import PIPE_WIDTH, make_console, stream_table, whole_table

POISSON = LoadSpec(kind="poisson", rate=1234.5, num_requests=20)


def lines(made, make, capsys):
    console = make_console()
    console.print(make(made.cells, verdicts(made)))
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("make", [stream_table, whole_table])
def test_open_loops_show_what_waited_to_be_sent(make, capsys):
    """The last six of a hundred left 300 ms late: their latencies from sending are like any other."""
    records = [later(request(index=i), 10_000 * i) for i in range(100)]
    records[94:] = [msgspec.structs.replace(later(r, 300_000), scheduled_us=r.scheduled_us) for r in records[94:]]
    _, *heads, row = lines(result([(spec(load=POISSON), records)]), make, capsys)
    own = 10 if make is stream_table else 17
    assert "scheduled" in heads[0]
    assert f" {own} {own} {own} {300 + own} {300 + own} " in " ".join(row.split())
    assert len(row) <= PIPE_WIDTH
    assert "…" not in row


@pytest.mark.parametrize("make", [stream_table, whole_table])
def test_closed_loops_have_no_schedule(make, capsys):
    _, *heads, _ = lines(result([(spec(), [request()])]), make, capsys)
    assert "scheduled" not in heads[0]
