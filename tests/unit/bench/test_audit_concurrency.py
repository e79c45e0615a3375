"""Loads that were not what was asked for: slots that stayed empty, stages that never came, and who is to blame."""

import msgspec
import pytest
from helpers.bench import later, request, result, spec

from pelton.bench.audit import audit, verdicts
from pelton.bench.load.stages import read_stages
from pelton.bench.load.tally import BUDGET_SPENT
from pelton.bench.results import LoadSpec, SessionSpec


def all_of(made, name):
    return [finding for finding in made.findings if finding.name == name]


def found(made, name):
    (finding,) = all_of(made, name)
    return finding


def failing(index, kind, *, ms=1.0, **changes):
    return request(index=index, error=kind, error_message="no", end_us=round(1000 * ms), content_us=[],
                   first_content_us=None, last_content_us=None, output_tokens=0, **changes)


def slots(num_slots, num_requests):
    """So many at a time, each round 17 ms after the one before."""
    return [later(request(index=i), 17_001 * (i // num_slots)) for i in range(num_requests)]


@pytest.mark.parametrize("kind", ["http_500", "http_429", "http_503", "connect", "timeout", "dropped"])
def test_any_failure_is_named_and_more_requests_are_not_the_advice(kind):
    good, bad = slots(2, 4), [msgspec.structs.replace(failing(4 + i, kind), sent_us=40_000 + 2000 * i,
                                                      scheduled_us=40_000 + 2000 * i, end_us=41_000 + 2000 * i)
                              for i in range(36)]
    few = found(result([(spec(concurrency=8, num_requests=40), [*good, *bad])]), "concurrency_not_reached")
    assert few.evidence == (f"c8-p16-o4: 40 requests asked for, at most 2 in flight of 8, and 36 of 40 failed "
                            f"(36 × {kind})")
    assert "errors first" in few.advice
    assert "Give num_requests" not in few.advice
    thin = found(result([(spec(concurrency=2, num_requests=40), [*good, *bad])]), "concurrency_thin")
    assert thin.evidence.endswith(f" in flight on average of 2, and 36 of 40 failed (36 × {kind})")
    assert "errors first" in thin.advice
    assert "run-out" not in thin.advice


def test_several_kinds_of_failure_are_all_counted():
    records = [request(), failing(1, "http_503"), failing(2, "connect"), failing(3, "http_503")]
    made = result([(spec(concurrency=8, num_requests=16), records)])
    assert found(made, "concurrency_not_reached").evidence.endswith(
        "and 3 of 4 failed (1 × connect, 2 × http_503)")


def test_fewer_requests_than_slots_are_the_cause_whatever_failed():
    records = [request(), *(failing(i, "http_429") for i in range(1, 5))]
    finding = found(result([(spec(concurrency=8, num_requests=5), records)]), "concurrency_not_reached")
    assert finding.advice.startswith("Give num_requests of at least twice the concurrency")
    assert "4 of 5 failed (4 × http_429)" in finding.evidence


def test_each_cause_has_its_own_advice():
    refused = (spec(concurrency=4, num_requests=8), [request(), *(failing(i, "http_500") for i in range(1, 3))])
    few = (spec(concurrency=64, num_requests=2), [request(index=i) for i in range(2)])
    made = result([refused, few])
    assert {f.cells[0]: "errors first" in f.advice for f in all_of(made, "concurrency_not_reached")} == {
        "c4-p16-o4": True, "c64-p16-o4": False}


def test_requests_enough_and_slots_never_full_is_no_lack_of_requests():
    finding = found(result([(spec(concurrency=4, num_requests=40), slots(2, 40))]), "concurrency_not_reached")
    assert finding.advice.startswith("There were requests enough")
    by_time = LoadSpec(kind="closed", concurrency=4, duration_s=1.0)
    assert "40 requests sent, at most 2 in flight of 4" in found(
        result([(spec(load=by_time), slots(2, 40))]), "concurrency_not_reached").evidence


def test_requests_are_those_of_each_trial():
    records = [msgspec.structs.replace(later(request(index=i), 50_000 * trial), trial=trial)
               for trial in range(3) for i in range(2)]
    made = result([(spec(concurrency=4, num_requests=2), records)])
    cell = msgspec.structs.replace(made.cells[0], num_trials=3)
    (finding,) = [f for f in audit(msgspec.structs.replace(made, cells=[cell])) if f.name == "concurrency_not_reached"]
    assert finding.evidence == "c4-p16-o4: 2 requests asked for in each trial, at most 2 in flight of 4"


def test_conversations_need_the_requests_of_all_their_turns():
    turns = [later(request(session="0", turn=turn, index=turn), 20_000 * turn) for turn in range(4)]
    made = result([(spec(concurrency=2, num_requests=4), turns)],
                  workload={"session": SessionSpec(num_turns=4, turn_tokens=8, think_time_s=0.0)})
    finding = found(made, "concurrency_not_reached")
    assert finding.evidence == "c2-p16-o4: 4 requests asked for, at most 1 of 2 conversations"
    assert "times session_turns" in finding.advice


def test_the_run_out_is_still_the_run_out_where_nothing_failed():
    made = result([(spec(concurrency=2, num_requests=2), [request(), request(end_us=100_000)])])
    assert found(made, "concurrency_thin").advice.startswith("The run-out at the end")


def test_offline_advice_speaks_of_runs():
    cells = [(spec(concurrency=2, num_requests=2), [request(), request(end_us=100_000)])]
    made = result(cells, kind="throughput", target={"endpoint": "offline", "url": "in process"})
    assert "Give more num_runs." in found(made, "too_few_samples").advice
    assert "more runs do not change it" in found(made, "concurrency_thin").advice
    assert not any("num_requests" in f.advice for f in made.findings)
    assert "Give more num_requests." in found(result(cells), "too_few_samples").advice


STAGED = LoadSpec(kind="closed_stages", concurrency=2, stages=read_stages("c1:0.04,c2:0.04"), num_requests=2)
FIRST, SECOND = (stage.name for stage in STAGED.stages)


def staged(records, load=STAGED, **changes):
    made = result([(spec(load=load), records)])
    cell = msgspec.structs.replace(made.cells[0], **changes)
    made = msgspec.structs.replace(made, cells=[cell])
    return msgspec.structs.replace(made, findings=audit(made))


def in_stage(name, count, *, start_us=0, at_once=1):
    return [later(request(stage=name, index=i), start_us + 20_000 * (i // at_once)) for i in range(count)]


@pytest.mark.parametrize("ends", [{"num_requests": 2}, {"num_requests": None, "duration_s": 0.03}])
def test_a_stage_that_the_load_ended_before_never_came(ends):
    made = staged(in_stage(FIRST, 2), msgspec.structs.replace(STAGED, **ends))
    finding = found(made, "stage_not_reached")
    assert (finding.severity, finding.evidence) == ("failure", f"cstages-p16-o4: stage {SECOND}: never came")
    assert "measurement_duration" in finding.advice
    assert verdicts(made) == {"cstages-p16-o4": "failed"}


def test_stages_that_all_came_are_no_finding():
    records = in_stage(FIRST, 2) + in_stage(SECOND, 4, start_us=40_000, at_once=2)
    assert not all_of(staged(records, msgspec.structs.replace(STAGED, num_requests=6)), "stage_not_reached")


def test_a_stage_in_which_every_slot_was_still_busy_is_said_to_have_no_request():
    load = msgspec.structs.replace(STAGED, stages=read_stages("c2:0.04,c1:0.01,c2:0.04"), num_requests=None)
    first, middle, last = (stage.name for stage in load.stages)
    records = in_stage(first, 2, at_once=2) + in_stage(last, 2, start_us=60_000, at_once=2)
    assert found(staged(records, load), "stage_not_reached").evidence.endswith(f"stage {middle}: nothing began in it")


@pytest.mark.parametrize("reason", [BUDGET_SPENT, "interrupted"])
def test_a_cell_that_was_cut_before_a_stage_has_the_finding_of_a_cut(reason):
    made = staged(in_stage(FIRST, 2), stop_reason=reason, status="partial")
    assert not all_of(made, "stage_not_reached")
    assert found(made, "cells_cut_short").evidence.endswith(f", {reason}, and stage {SECOND} never came")
    assert verdicts(made) == {"cstages-p16-o4": "with care"}


def test_a_cell_that_was_cut_on_the_way_up_has_the_finding_of_a_cut():
    load = msgspec.structs.replace(STAGED, concurrency=9, stages=read_stages("c1:0.04,c1-9:10"), num_requests=None)
    records = in_stage(load.stages[0].name, 2) + in_stage(load.stages[1].name, 4, start_us=40_000, at_once=2)
    assert not all_of(staged(records, load, stop_reason=BUDGET_SPENT, status="partial"), "stage_not_reached")
    assert "at most 2" in found(staged(records, load), "stage_not_reached").evidence
    level = msgspec.structs.replace(load, stages=[load.stages[0], msgspec.structs.replace(
        load.stages[1], concurrency=9)])  # nine at once from its beginning, which no cut explains
    assert "at most 2" in found(staged(records, level, stop_reason=BUDGET_SPENT), "stage_not_reached").evidence


def test_a_last_stage_by_count_is_full_when_its_last_request_begins():
    """Its time ends there, so that the stage's own figure lacks that request."""
    load = msgspec.structs.replace(STAGED, stages=read_stages("c1:2req,c2:2req"), num_requests=4)
    late = [later(request(stage=load.stages[1].name, index=2 + i), 40_000 + i) for i in range(2)]
    made = staged(in_stage(load.stages[0].name, 2) + late, load)
    assert made.cells[0].stages[1].peak_in_flight == 1
    assert not all_of(made, "stage_not_reached")


def test_a_stage_whose_requests_failed_is_not_the_clients_fault():
    bad = [msgspec.structs.replace(failing(2 + i, "http_503", stage=SECOND), scheduled_us=40_000 + 2000 * i,
                                   sent_us=40_000 + 2000 * i, end_us=41_000 + 2000 * i) for i in range(4)]
    made = staged(in_stage(FIRST, 2) + bad, msgspec.structs.replace(STAGED, num_requests=6))
    finding = found(made, "stage_not_reached")
    assert finding.evidence == f"cstages-p16-o4: stage {SECOND}: at most 1, and 4 of 4 failed (4 × http_503)"
    assert "errors first" in finding.advice


def test_a_pause_for_thought_excuses_an_empty_slot_and_no_missing_stage():
    session = {"session": SessionSpec(num_turns=2, turn_tokens=8, think_time_s=0.05)}
    load = msgspec.structs.replace(STAGED, stages=read_stages("c2:0.04,c2:0.04"))
    first, second = (stage.name for stage in load.stages)
    made = result([(spec(load=load), in_stage(first, 2))], workload=session)
    assert found(made, "stage_not_reached").evidence.endswith(f"stage {second}: never came")
    assert "at most" not in found(made, "stage_not_reached").evidence


def test_a_stage_of_arrivals_that_never_came():
    load = LoadSpec(kind="stages", stages=read_stages("10:1,100:1,0:1,1:1"), num_requests=10)
    names = [stage.name for stage in load.stages]
    made = staged([later(request(stage=names[0], index=i), 90_000 * i) for i in range(10)], load)
    assert found(made, "stage_not_reached").evidence == f"stages-p16-o4: stage {names[1]}: never came"
    whole = msgspec.structs.replace(load, num_requests=None)
    assert not all_of(staged([later(request(stage=names[1], index=i), 90_000 * i) for i in range(10)], whole),
                      "stage_not_reached")  # of the first stage all may have been warm-up


def test_one_thing_is_no_things():
    one = [request(output_tokens=1, content_us=[10_000])]
    made = result([(spec(), one)], target={"frame_correction_tokens": 1}, skipped_cells=["c2-p16-o4"])
    evidence = {f.name: f.evidence for f in made.findings}
    assert evidence["too_few_samples"].startswith("1 cell has 1 good request; ")
    assert "had 1 token instead of 4" in evidence["output_lengths_differ"]
    assert evidence["cells_skipped"].startswith("1 cell was not run")
    assert "counts +1 token for" in evidence["template_corrected"]
    two = result([(spec(prompt_tokens=size), [request(server_prompt_tokens=size)] * 2) for size in (16, 17)])
    assert found(two, "too_few_samples").evidence.startswith("2 cells have 2 good requests each; ")
