import pytest
from helpers.bench import later, request, result, spec

from pelton.bench.audit import CHECKS, audit


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
    assert "1 of 1 answers" in found(result([(spec(), [silent])]), "first_token_invisible").evidence


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


def test_cells_cut_short_and_skipped():
    made = result([(spec(num_requests=9), [request()])], skipped_cells=["c8-p900-o4"], status="partial")
    assert "1 of 9 requests" in found(made, "cells_cut_short").evidence
    assert found(made, "cells_skipped").cells == ["c8-p900-o4"]


def test_gravest_first_and_no_check_fails_on_an_empty_cell():
    made = result([(spec(concurrency=4, num_requests=4), [request()]), (spec(concurrency=2), [])])
    order = [("failure", "warning", "note").index(f.severity) for f in made.findings]
    assert order == sorted(order)
    assert len({check.__name__ for check in CHECKS}) == len(CHECKS)
    assert audit(made) == made.findings
