import msgspec
import pytest
from helpers.bench import later, request, result, spec

from pelton.bench.audit import audit, verdicts
from pelton.bench.audit.ranks import is_larger
from pelton.bench.audit.verdict import all_checks
from pelton.bench.results import Analysis, ClientError, ClientLoad, HardwareFacts, LoadSpec, SessionSpec
from pelton.config import ModelConfig


def names(made):
    return {finding.name for finding in made.findings}


def found(made, name):
    (finding,) = [f for f in made.findings if f.name == name]
    return finding


def one_after_another(count, **changes):
    return [later(request(**changes), 17_001 * i, index=i) for i in range(count)]


def test_a_good_cell_has_no_findings():
    assert names(result([(spec(num_requests=100), one_after_another(100))])) == set()


def test_fewer_requests_than_slots():
    made = result([(spec(concurrency=64, num_requests=32), [request(index=i) for i in range(32)])])
    finding = found(made, "concurrency_not_reached")
    assert finding.severity == "failure"
    assert "32 requests asked for, at most 32 in flight of 64" in finding.evidence


def test_run_out_that_weighs_too_much():
    long = request(end_us=100_000)
    made = result([(spec(concurrency=2, num_requests=2), [request(), long])])
    assert "on average of 2" in found(made, "concurrency_thin").evidence


def test_conversations_are_held_while_the_user_thinks():
    """Two conversations of two turns beside each other, each with a pause three times as long as an answer."""
    turns = [later(request(session=f"{k}", turn=turn, index=2 * k + turn), 50_000 * turn) for k in (0, 1)
             for turn in (0, 1)]
    session = SessionSpec(num_turns=2, turn_tokens=8, think_time_s=0.05)
    cells = [(spec(concurrency=2, num_requests=4), turns)]
    assert names(result(cells, workload={"session": session})) == {"too_few_samples"}
    assert "concurrency_thin" in names(result(cells))
    one = result([(spec(concurrency=2, num_requests=2), turns[:2])], workload={"session": session})
    assert "2 requests asked for, at most 1 of 2 conversations" in found(one, "concurrency_not_reached").evidence


def test_requests_that_the_client_held_back():
    load = LoadSpec(kind="poisson", rate=50.0, num_requests=100, max_in_flight=1)
    made = result([(spec(load=load), one_after_another(100))])
    assert "requests_held" not in names(made)
    made = msgspec.structs.replace(made, cells=[msgspec.structs.replace(made.cells[0], num_held=7)])
    (finding,) = [f for f in audit(made) if f.name == "requests_held"]
    assert finding.evidence.endswith("7 requests (warm-up included) were due while 1 were in flight, and waited")
    assert "max_in_flight" in finding.advice


def test_sizes_that_were_all_one_size():
    cells = [(spec(prompt_tokens=size), [request(server_prompt_tokens=129)]) for size in (16, 32, 64)]
    finding = found(result(cells), "prompt_sizes_collapsed")
    assert finding.severity == "failure"
    assert "sizes 16, 32, 64 were all 129 tokens" in finding.evidence
    assert len(finding.cells) == 3


def test_one_size_at_several_concurrencies_has_not_collapsed():
    cells = [(spec(concurrency=c), [request(index=i) for i in range(c)]) for c in (1, 2)]
    assert "prompt_sizes_collapsed" not in names(result(cells))


def test_server_counts_prompts_otherwise():
    made = result([(spec(num_requests=2), [request(), request(index=1, server_prompt_tokens=19)])])
    assert "1 of 2 prompts of 16 tokens counted as 19" in found(made, "prompt_tokens_disagree").evidence


@pytest.mark.parametrize("change", [{"server_prompt_tokens": None}, {"output_tokens_source": "client"}])
def test_usage_that_is_missing(change):
    assert "usage_missing" in names(result([(spec(), [request(**change)])]))


def test_output_lengths_that_differ():
    made = result([(spec(num_requests=2), [request(output_tokens=2, content_us=[1, 2]), request(index=1)])])
    assert "1 of 2 answers had 2 tokens instead of 4" in found(made, "output_lengths_differ").evidence


def test_cached_prompts_beyond_the_template():
    assert "prompts_cached" not in names(result([(spec(), [request(cached_tokens=4)])]))
    finding = found(result([(spec(), [request(cached_tokens=12)])]), "prompts_cached")
    assert finding.severity == "failure"
    assert "75% of their tokens" in finding.evidence


def test_chunks_that_are_not_tokens():
    assert "2.00 tokens per chunk" in found(result([(spec(output_tokens=8), [request(output_tokens=8)])]),
                                            "chunks_are_not_tokens").evidence


def test_chunks_that_arrive_together():
    made = result([(spec(), [request(content_us=[10000, 10000, 16000, 16000])])])
    assert "67% of the chunks" in found(made, "chunks_arrive_bunched").evidence


def test_answers_without_text():
    silent = request(first_content_us=None, last_content_us=None, content_us=[])
    finding = found(result([(spec(), [silent])]), "answers_empty")
    assert (finding.severity, finding.evidence) == ("failure", "c1-p16-o4: 1 of 1 answers")
    some = [*one_after_another(199), msgspec.structs.replace(silent, index=199)]
    few = found(result([(spec(num_requests=200), some)]), "answers_empty")
    assert (few.severity, few.evidence) == ("warning", "c1-p16-o4: 1 of 200 answers")
    open_ended = found(result([(spec(), [silent])], workload={"fixed_output": False}), "answers_empty")
    assert open_ended.severity == "warning"


def test_answers_of_nothing_but_reasoning():
    thinking = request(first_content_us=None, first_reasoning_us=10_000)
    made = result([(spec(), [thinking])])
    assert "1 of 1 answers" in found(made, "first_token_invisible").evidence
    assert "answers_empty" not in {f.name for f in made.findings}


@pytest.mark.parametrize(("num_failed", "severity"), [(1, "warning"), (5, "failure")])
def test_failed_requests(num_failed, severity):
    requests = one_after_another(20 - num_failed)
    requests += [later(request(error="http_500", error_message="status 500: no"), 400_000 + 20_000 * i, index=50 + i)
                 for i in range(num_failed)]
    finding = found(result([(spec(num_requests=20), requests)]), "requests_failed")
    assert finding.severity == severity
    assert f"{num_failed} × http_500" in finding.evidence
    assert "status 500: no" in finding.evidence


def test_requests_that_were_sent_twice():
    assert "1 of 1 requests" in found(result([(spec(), [request(was_resent=True)])]), "requests_resent").evidence


def test_too_few_samples_says_how_many_are_needed():
    assert "P95 needs 20 and P99 needs 100" in found(result([(spec(), [request()])]), "too_few_samples").evidence
    made = result([(spec(num_requests=30), one_after_another(30))])
    assert "P99 needs 100" in found(made, "too_few_samples").evidence
    assert "P95" not in found(made, "too_few_samples").evidence


def test_what_the_probe_found_out():
    made = result([(spec(), [request()])], workload={"first_tokens_unique": False},
                  target={"output_control": "max_tokens", "frame_correction_tokens": -3})
    assert {"output_control_refused", "template_corrected", "first_tokens_repeat"} <= names(made)
    assert "-3 tokens" in found(made, "template_corrected").evidence
    assert "one trial" not in found(made, "first_tokens_repeat").evidence
    made = result([(spec(), [request()])], workload={"first_tokens_unique": False, "trial_first_tokens_unique": True})
    assert "those of one trial differ in the first" in found(made, "first_tokens_repeat").evidence


def test_cells_cut_short_and_skipped():
    made = result([(spec(num_requests=9), [request()])], skipped_cells=["c8-p900-o4"], status="partial")
    assert "1 of 9 requests" in found(made, "cells_cut_short").evidence
    assert found(made, "cells_skipped").cells == ["c8-p900-o4"]
    assert "duration_budget" in found(made, "cells_skipped").advice
    failed = result([(spec(), [request()])], skipped_cells=["c8-p900-o4"], status="partial", stop_reason="it failed")
    assert "resume" in found(failed, "cells_skipped").advice


def test_gravest_first_and_no_check_fails_on_an_empty_cell():
    made = result([(spec(concurrency=4, num_requests=4), [request()]), (spec(concurrency=2), [])])
    order = [("failure", "warning", "note").index(f.severity) for f in made.findings]
    assert order == sorted(order)
    assert len({check.__module__ for check in all_checks()}) == len(all_checks())
    assert audit(made) == made.findings


def test_every_cell_has_a_verdict():
    good = (spec(num_requests=100), one_after_another(100))
    thin = (spec(prompt_tokens=900, num_requests=2), [request(server_prompt_tokens=900, client_prompt_tokens=901,
                                                              index=i) for i in range(2)])
    few = (spec(concurrency=64, num_requests=2), [request(index=i) for i in range(2)])
    assert verdicts(result([good, thin, few])) == {
        "c1-p16-o4": "sound", "c1-p900-o4": "with care", "c64-p16-o4": "failed"}


def test_a_refusing_server_is_named_where_concurrency_was_not_reached():
    refused = [request(index=i, error="http_429", error_message="busy", content_us=[], output_tokens=0)
               for i in range(4)]
    made = result([(spec(concurrency=8, num_requests=5), [request(), *refused])])
    assert "4 of 5 failed (4 × http_429)" in found(made, "concurrency_not_reached").evidence


def test_cells_that_asked_for_the_same_and_got_different_lengths_cannot_be_compared():
    short = [request(output_tokens=3, finish_reason="stop")]
    made = result([(spec(), [request()]), (spec(concurrency=2, num_requests=1), short)])
    finding = found(made, "cells_compare_different_work")
    assert finding.severity == "failure"
    assert "c2-p16-o4: 3.0 of 4 tokens" in finding.evidence
    assert "1 stopped early by themselves" in found(made, "output_lengths_differ").evidence


def test_more_chunks_than_tokens_is_a_miscount():
    made = result([(spec(), [request(output_tokens=2)])])
    assert "2.00 chunks with text for every token" in found(made, "output_tokens_miscounted").evidence


def test_prefixes_that_were_asked_to_be_shared_are_a_note():
    made = result([(spec(), [request(cached_tokens=12, prefix_tokens=8)])])
    assert "prompts_cached" not in names(made)
    assert found(made, "shared_prefixes_cached").severity == "note"
    assert "prompts_cached" in names(result([(spec(), [request(cached_tokens=13, prefix_tokens=8)])]))


def test_failures_that_were_faster_than_answers():
    failed = [request(index=i, error="http_500", error_message="no", end_us=900, content_us=[]) for i in range(1, 3)]
    made = result([(spec(num_requests=3), [request(), *failed])])
    assert "faster than answers" in found(made, "requests_failed").evidence


LLAMA_7B = ModelConfig(
    architecture="LlamaForCausalLM", vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_layers=32,
    num_heads=32, num_kv_heads=32, head_dim=128, max_position_embeddings=4096, dtype="bfloat16")


def on_a6000(num_tokens, ttft_ms, **changes):
    """One streamed request of this prompt size to a 7B model on an RTX A6000."""
    first = round(1000 * ttft_ms)
    record = request(server_prompt_tokens=num_tokens, client_prompt_tokens=num_tokens, first_content_us=first,
                     content_us=[first + i * 25_000 for i in range(4)], last_content_us=first + 75_000,
                     end_us=first + 76_000)
    facts = HardwareFacts(gpu="RTX A6000", model=msgspec.to_builtins(LLAMA_7B), source="options")
    return result([(spec(prompt_tokens=num_tokens), [msgspec.structs.replace(record, **changes)])],
                  analysis=Analysis(hardware=facts))


@pytest.mark.parametrize(("num_tokens", "ttft_ms"), [(2222, 48), (914, 46)])
def test_published_prefills_that_an_a6000_cannot_compute(num_tokens, ttft_ms):
    finding = found(on_a6000(num_tokens, ttft_ms), "ttft_below_floor")
    assert finding.severity == "failure"
    assert f"{num_tokens} tokens took {ttft_ms:.1f} ms, and the RTX A6000 needs" in finding.evidence


def test_a_prefill_that_an_a6000_can_compute():
    assert names(on_a6000(914, 90)) == {"too_few_samples"}


def test_tokens_that_the_server_says_were_cached_lower_the_floor():
    assert "ttft_below_floor" not in names(on_a6000(914, 46, cached_tokens=800))


def test_streams_faster_than_memory():
    """13.5 GB of weights at 768 GB/s are 57 tokens/s."""
    fast = {"content_us": [90_000 + i * 6_000 for i in range(4)], "last_content_us": 108_000}
    made = on_a6000(914, 90, **fast)
    assert "came at 167 tokens/s, and one stream on the RTX A6000 is limited to 5" in found(
        made, "stream_above_limit").evidence


def test_rates_above_what_the_requests_in_flight_allow():
    made = on_a6000(914, 90, output_tokens=400, requested_output_tokens=400)
    assert "rate_above_limit" in names(made)


def test_without_hardware_nothing_is_held_against_limits():
    fast = result([(spec(), [request()])])
    assert not names(fast) & {"ttft_below_floor", "stream_above_limit", "rate_above_limit"}


def in_a_row(latencies_ms):
    records, at = [], 0
    for index, ms in enumerate(latencies_ms):
        us = round(1000 * ms)
        records.append(later(request(index=index, first_content_us=us - 7000, end_us=us,
                                     content_us=[us - 7000, us - 5000, us - 3000, us - 1000],
                                     last_content_us=us - 1000), at))
        at += us + 1
    return records


def test_slow_first_requests_are_a_warm_up_that_is_still_visible():
    made = result([(spec(num_requests=30), in_a_row([60.0, 50, 45, 40] + [17 + i % 3 for i in range(26)]))])
    assert "of the first 4 requests is" in found(made, "warmup_visible").evidence
    steady = result([(spec(num_requests=30), in_a_row([17 + i % 3 for i in range(30)]))])
    assert "warmup_visible" not in names(steady)


def test_latency_that_rises_in_the_window_is_a_drift():
    made = result([(spec(num_requests=60), in_a_row([17 + i for i in range(60)]))])
    assert "second half of the steady window took" in found(made, "drift").evidence
    falling = result([(spec(num_requests=60), in_a_row([80 - i for i in range(60)]))])
    assert "first half" in found(falling, "drift").evidence


def arriving(count, every_us, **changes):
    return [later(request(index=i, **changes), every_us * i) for i in range(count)]


POISSON = LoadSpec(kind="poisson", rate=100.0, num_requests=40)


def test_requests_sent_behind_schedule():
    late = arriving(40, 10_000, scheduled_us=-8000)
    made = result([(spec(load=POISSON), late)])
    assert "left more than 8.0 ms after their time" in found(made, "sent_behind_schedule").evidence
    assert not names(result([(spec(load=POISSON), arriving(40, 10_000))])) & {"sent_behind_schedule",
                                                                              "server_overloaded"}


@pytest.mark.parametrize(("num_late", "late_ms", "latency_ms", "is_found"), [
    (2, 160, 17, True), (1, 160, 17, False), (2, 140, 17, False), (2, 160, 2000, False), (2, 260, 2000, True)])
def test_a_tail_that_was_sent_behind_schedule(num_late, late_ms, latency_ms, is_found):
    """More than one of a hundred, by more than a machine's noise and a tenth of a latency."""
    records = arriving(190, 10_000, end_us=1000 * latency_ms)
    records[50:50 + num_late] = [msgspec.structs.replace(later(r, 1000 * late_ms), scheduled_us=r.scheduled_us)
                                 for r in records[50:50 + num_late]]
    findings = [f for f in result([(spec(load=POISSON), records)]).findings if f.name == "sent_behind_schedule"]
    assert [f.severity for f in findings] == ["warning"] * is_found
    if is_found:
        assert f"{num_late} of 190 requests left more than {max(150, latency_ms // 10)} ms after their time, up to " \
               f"{late_ms} ms" in findings[0].evidence


def test_requests_that_waited_for_a_place_are_not_called_late():
    records = arriving(190, 10_000)
    records[50:60] = [msgspec.structs.replace(later(r, 160_000), scheduled_us=r.scheduled_us) for r in records[50:60]]
    made = result([(spec(load=POISSON), records)])
    assert "sent_behind_schedule" in names(made)
    held = msgspec.structs.replace(made, cells=[msgspec.structs.replace(made.cells[0], num_held=9)])
    assert {f.name for f in audit(held)} & {"sent_behind_schedule", "requests_held"} == {"requests_held"}


def test_a_cell_without_answers_is_not_sound():
    cancelled = [later(request(index=i, was_cancelled=True), 20_000 * i) for i in range(20)]
    made = result([(spec(num_requests=20), cancelled)])
    assert set(verdicts(made).values()) == {"failed"}
    assert "0 of 20 requests were answered in full, 20 were cancelled" in found(made, "too_few_answers").evidence
    assert "too_few_answers" in names(result([(spec(num_requests=21), [*cancelled, later(request(), 420_000)])]))
    assert "too_few_answers" not in names(result([(spec(num_requests=20), [request(), *cancelled[1:10]])]))
    assert "no measured request ended" in found(result([(spec(), [])]), "too_few_answers").evidence
    failed = [msgspec.structs.replace(r, was_cancelled=False, error="http_500") for r in cancelled]
    assert names(result([(spec(num_requests=20), failed)])) & {"too_few_answers", "requests_failed"} == {
        "requests_failed"}


def test_a_server_that_falls_behind_the_arrivals():
    records = [msgspec.structs.replace(r, end_us=r.end_us + 30_000 * i) for i, r in enumerate(arriving(40, 10_000))]
    assert "100 requests/s came" in found(result([(spec(load=POISSON), records)]), "server_overloaded").evidence


def with_client(**fields):
    made = result([(spec(num_requests=100), one_after_another(100))])
    client = ClientLoad(**{"num_workers": 1, "cpu_share": [0.3], **fields})
    changed = msgspec.structs.replace(made, cells=[msgspec.structs.replace(made.cells[0], client=client)])
    return msgspec.structs.replace(changed, findings=audit(changed))


def own_error(ttft_us, itl_us):
    return ClientError(concurrency=1, num_events=100, ttft_p50_us=ttft_us, ttft_p99_us=ttft_us, event_p50_us=ttft_us,
                       event_p99_us=ttft_us, itl_p50_us=itl_us, itl_p99_us=itl_us)


def test_the_client_as_the_limit():
    assert "used 97% of a core" in found(with_client(cpu_share=[0.2, 0.97]), "client_cpu_bound").evidence
    assert "in time to first token is 1.50 ms, of 10.00 ms" in found(
        with_client(calibration=own_error(1500, 10)), "client_error_large").evidence
    assert "inter-token latency is 0.50 ms, of 2.00 ms" in found(
        with_client(calibration=own_error(500, 500)), "client_error_large").evidence
    assert "moved by 3,600,000 ms" in found(with_client(clock_jump_us=3_600_000_000), "clock_jumped").evidence
    assert names(with_client(calibration=own_error(500, 50), clock_jump_us=900)) == set()


def test_ranks_tell_larger_from_not():
    low, high = [float(i) for i in range(12)], [i + 6.5 for i in range(12)]
    assert is_larger(high, low)
    assert not is_larger(low, high)
    assert not is_larger([1.0] * 20, [1.0] * 20)
