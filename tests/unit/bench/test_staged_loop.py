"""Closed loops whose number in flight changes by plan, and the figures of their stages."""

import asyncio
import random
import re

import msgspec
import pytest
from helpers.bench import later, request, result, spec

from pelton.bench.audit import audit
from pelton.bench.client import Exchange, now_ns
from pelton.bench.framing import Response
from pelton.bench.load.plan import LoadJob, Planned
from pelton.bench.load.run_load import run_load
from pelton.bench.load.staged_loop import changes
from pelton.bench.load.stages import read_stages
from pelton.bench.report.csv_tables import stages_csv
from pelton.bench.report.markdown import summary
from pelton.bench.report.page import render
from pelton.bench.report.view import ReportView
from pelton.bench.results import LoadSpec, LoadStage
from pelton.bench.summary import recompute
from pelton.bench.table import make_console, print_result
from pelton.bench.workers.pool import share_out


class Server:
    """Answers after a few passes of the event loop; notes what was in flight when each request came."""

    def __init__(self):
        self.in_flight = 0
        self.found = {}

    async def send(self, request, **_):
        self.in_flight += 1
        self.found[int(request)] = self.in_flight
        for _ in range(random.randrange(1, 6)):
            await asyncio.sleep(0)
        self.in_flight -= 1
        return Exchange(response=Response(status=200), sent_ns=now_ns())


def run(text, count, *, num_warmup=0, **more):
    """The requests sent, in order of sending, and what each found in flight, itself included."""
    stages, server = read_stages(text), Server()
    requests = [Planned(index=i, is_warmup=i < num_warmup, request=b"%d" % i, requested_prompt_tokens=1,
                        client_prompt_tokens=1, requested_output_tokens=1) for i in range(count)]
    job = LoadJob(concurrency=max(s.most_in_flight for s in stages), stages=stages, **more)
    done = asyncio.run(run_load(job, requests, server.send))
    return sorted((planned for planned, _ in done.sent), key=lambda p: p.index), server.found, done


def test_stages_by_count_follow_each_other_at_their_levels():
    sent, found, done = run("c2:20req,c5:30req,c1:10req", 200, num_warmup=4)
    assert [p.stage for p in sent] == [None] * 4 + ["1: 2 in flight"] * 20 + ["2: 5 in flight"] * 30 + [
        "3: 1 in flight"] * 10
    assert done.stop_reason is None
    assert max(found[i] for i in range(24)) == 2  # the warm-up too
    assert max(found[i] for i in range(24, 54)) == 5
    assert [found[i] for i in range(59, 64)] == [1] * 5  # what was in flight has ended by then


def test_stages_by_time_end_by_themselves_and_send_no_more_than_they_may():
    sent, found, _ = run("c3:0.1,c1-4:0.1,c2:0.1", 200_000)
    names = [p.stage for p in sent]
    assert list(dict.fromkeys(names)) == ["1: 3 in flight", "2: 1 to 4 in flight", "3: 2 in flight"]
    assert names == sorted(names)
    assert max(found.values()) <= 4
    assert len(sent) < 200_000


def test_a_load_without_enough_requests_or_time_ends():
    sent, _, _ = run("c2:100,c4:100", 7)
    assert len(sent) == 7
    sent, _, done = run("c2:50req,c4:50req", 100, deadline_ns=now_ns() - 1)
    assert (len(sent), done.stop_reason) == (4, "the time budget was spent")


@pytest.mark.parametrize(("start", "end"), [(1, 4), (6, 2), (3, 3)])
def test_levels_are_the_nearest_to_the_line(start, end):
    stage = LoadStage(name="x", concurrency=start, end_concurrency=end, duration_s=10.0)
    levels = list(changes(stage))
    for tenth in range(1, 100, 2):
        at = tenth / 10
        line = start + (end - start) * at / 10
        level = next((found for after, found in reversed(levels) if after <= at), start)
        assert abs(level - line) <= 0.5 + 1e-9


def test_several_processes_have_the_slots_of_one():
    stages = read_stages("c1-7:5")
    parts = share_out(LoadJob(concurrency=7, stages=stages), [], 3)
    slots = [[p.job.first_slot + slot * p.job.slot_step for slot in range(p.job.concurrency)] for p in parts]
    assert slots == [[0, 3, 6], [1, 4], [2, 5]]


def staged(*, peak=2):
    """One trial: a stage of one in flight for 40 ms, then one of `peak` for 40 ms; each answer takes 17 ms."""
    load = LoadSpec(kind="closed_stages", concurrency=2, stages=read_stages("c1:0.04,c2:0.04"))
    names = [stage.name for stage in load.stages]
    calm = [later(request(stage=names[0], index=i), 20_000 * i) for i in range(2)]
    busy = [later(request(stage=names[1], index=2 + i), 40_000 + 20_000 * (i // peak)) for i in range(2 * peak)]
    return result([(spec(load=load), [*calm, *busy])])


def test_figures_of_each_stage():
    made = staged()
    calm, busy = made.cells[0].stages
    assert [(w.start_us, w.end_us) for w in (*calm.windows, *busy.windows)] == [(0, 40_000), (40_000, 77_000)]
    assert (calm.num_done, busy.num_done) == (2, 4)
    assert (calm.peak_in_flight, busy.peak_in_flight) == (1, 2)
    assert calm.value("in_flight_requests") == pytest.approx(34 / 40)
    assert busy.value("in_flight_requests") == pytest.approx(68 / 37)
    assert calm.value("steady_output_throughput") == pytest.approx(8 / 0.04)
    assert busy.value("request_throughput") == pytest.approx(4 / 0.037)
    assert calm.distribution("ttft").p50 == 10.0
    assert calm.distribution("ttft").missing == {"p90": 8, "p95": 18, "p99": 98, "p99.9": 998}
    assert "output_throughput" not in calm.metrics  # over a wall time that would hold other stages' requests
    assert not [f for f in made.findings if f.name == "stage_not_reached"]


def test_a_stage_that_was_never_full_is_found():
    (finding,) = [f for f in staged(peak=1).findings if f.name == "stage_not_reached"]
    assert finding.evidence == "cstages-p16-o4: stage 2: 2 in flight: at most 1"


def test_every_report_has_a_table_of_the_stages(capsys):
    made = staged()
    page, text, table = render(made), summary(ReportView(made), []), stages_csv(made).decode().splitlines()
    print_result(make_console(), made)
    assert "<th scope=row>2: 2 in flight</th><td>1.84 / 2</td><td>10" in page
    assert "| 2: 2 in flight | 1.84 / 2 | 10 (…–…) | *needs 16 more* |" in text
    assert re.search(r"2: 2 in flight +1\.84 /   2 +10 +– ", capsys.readouterr().out)
    assert [row.split(",")[:5] for row in table[1:]] == [["cstages-p16-o4", "1: 1 in flight", "2", "0", "1"],
                                                        ["cstages-p16-o4", "2: 2 in flight", "4", "0", "2"]]


def test_a_stage_of_more_than_is_answered_is_named():
    """40 come in each of two seconds; the first second's are answered at once, the second's one after another."""
    load = LoadSpec(kind="stages", stages=read_stages("40:1,40.5:1"))
    names = [stage.name for stage in load.stages]
    calm = [later(request(stage=names[0], index=i), 25_000 * i) for i in range(40)]
    busy = [request(stage=names[1], index=40 + i, scheduled_us=1_000_000 + 25_000 * i, end_us=1_100_000 + 100_000 * i,
                    sent_us=1_000_000 + 25_000 * i) for i in range(40)]
    (finding,) = [f for f in result([(spec(load=load), [*calm, *busy])]).findings if f.name == "server_overloaded"]
    assert finding.evidence == "stages-p16-o4: stage 2: 40.5/s: more came than were answered"


def test_answers_that_last_into_the_next_stage_count_where_they_arrive():
    made = staged()
    slow = [msgspec.structs.replace(r, end_us=60_000, content_us=[10_000, 12_000, 25_000, 30_000])
            if r.sent_us == 20_000 else r for r in made.requests]
    again = audit_again(msgspec.structs.replace(made, requests=slow))
    calm, busy = again.cells[0].stages
    assert calm.value("steady_output_throughput") == pytest.approx(6 / 0.04)
    assert busy.value("steady_output_throughput") == pytest.approx(18 / 0.037)
    assert busy.peak_in_flight == 3


def audit_again(found):
    found = recompute(found)
    return msgspec.structs.replace(found, findings=audit(found))
