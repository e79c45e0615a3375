"""Where prompts come from, how long they are and what they share, from the options to the records."""

import itertools
import json
from importlib.resources import files
from pathlib import Path

import pytest
from helpers.bench import UNWATCHED, prompt_counter
from helpers.calibrated import serve_in_thread

from pelton.bench.calibration import Behaviour
from pelton.bench.files import read_result
from pelton.bench.options import SweepOptions
from pelton.bench.sweep import run_sweep
from pelton.errors import ConfigError

TINY = Path(str(files("pelton") / "models_data" / "pelton-tiny"))
COUNT = prompt_counter(TINY)
TEXT = "A wheel turned under falling water all day, and all night, and nobody asked what it was for. " * 3


def sweep(folder, **options):
    """(result, measured requests' bodies, warm-up and probes left out)."""
    sized = {} if "trace" in options else {"concurrency": (2,), "prompt_tokens": ("60",), "output_tokens": ("5",)}
    fields = {**sized, "num_requests": 8, "num_warmup": 0, "output_dir": str(folder / "out"), "calibrate": False,
              **UNWATCHED, "request_timeout": 20.0, **options}
    with serve_in_thread(Behaviour(model="tiny", root=str(TINY), count_prompt=COUNT)) as server:
        assert run_sweep(SweepOptions(url=server.url, **fields)) == 0
    result = read_result(folder / "out" / "results.json")
    return result, server.bodies[-len(result.requests):]


def names(result):
    return {f.name for f in result.findings}


def counted_as_asked(result):
    return all(r.server_prompt_tokens == r.client_prompt_tokens == r.requested_prompt_tokens for r in result.requests)


def write(folder, *rows):
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_drawn_sizes_are_in_the_records_and_the_mean_in_the_cell(tmp_path):
    result, _ = sweep(tmp_path, prompt_tokens=("30-90", "50~10"), output_tokens=("2-6",), num_requests=20)
    assert [c.id for c in result.cells] == ["c2-p50~10-o2-6", "c2-p30-90-o2-6"]
    for cell in result.cells:
        sizes = [r.requested_prompt_tokens for r in result.requests if r.cell == cell.id]
        assert not cell.has_fixed_sizes
        assert len(set(sizes)) > 5
        assert cell.requested_prompt_tokens == round(sum(sizes) / len(sizes))
    assert counted_as_asked(result)
    assert result.workload.prompt_tokens == ["30-90", "50~10"]
    assert {r.output_tokens for r in result.requests} <= {2, 3, 4, 5, 6}
    assert all(r.output_tokens == r.requested_output_tokens for r in result.requests)
    assert not names(result) & {"prompt_sizes_collapsed", "output_lengths_differ", "cells_compare_different_work"}


def test_genai_perfs_standard_deviation(tmp_path):
    result, _ = sweep(tmp_path, prompt_tokens_stddev=9.0)
    assert result.cells[0].id == "c2-p60~9-o5"
    assert len({r.requested_prompt_tokens for r in result.requests}) > 3


def test_text_file(tmp_path):
    (tmp_path / "text").write_text(TEXT)
    result, bodies = sweep(tmp_path, prompt_text=str(tmp_path / "text"))
    assert counted_as_asked(result)
    contents = [body["messages"][0]["content"] for body in bodies]
    assert all("nobody asked" in content for content in contents)
    assert len({content.split()[0] for content in contents}) == len(contents)
    assert result.workload.prompt_spec.source == "text"
    assert len(result.workload.prompt_spec.sha256) == 64
    assert result.workload.prompts.startswith("stretches of a text file")


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_data_set_as_it_is(tmp_path, endpoint):
    log = [{"from": "human", "value": "Who is it?"}, {"from": "gpt", "value": "Me."}]
    data = write(tmp_path, {"conversations": log},
                 {"body": {"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "And?"}],
                           "max_tokens": 3}})
    result, bodies = sweep(tmp_path, prompt_data=data, prompt_tokens=("data",), output_tokens=("data",),
                           endpoint=endpoint)
    (cell,) = result.cells
    assert (cell.id, cell.num_done, cell.errors) == ("c2-pdata-odata", 8, {})
    assert counted_as_asked(result)
    assert all(r.output_tokens == r.requested_output_tokens for r in result.requests)
    if endpoint == "chat":
        assert {len(body["messages"]) for body in bodies} == {1, 2}
    else:
        assert all(body["prompt"].endswith(("Who is it?", "S\n\nAnd?")) for body in bodies)


def test_data_set_as_it_is_may_repeat_when_asked_to(tmp_path):
    result, bodies = sweep(tmp_path, prompt_data=write(tmp_path, {"prompt": "Who is it?"}), prompt_tokens=("data",),
                           unique_prompts=False)
    assert {body["messages"][0]["content"] for body in bodies} == {"Who is it?"}
    assert "prompts_may_begin_alike" in names(result)


def test_repeated_text_is_told_and_sizes_below_the_floor_collapse(tmp_path):
    (tmp_path / "text").write_text(TEXT)
    result, bodies = sweep(tmp_path, prompt_repeat_text=str(tmp_path / "text"), prompt_tokens=("1", "2", "80"))
    assert {"prompts_repeat", "prompt_sizes_collapsed"} <= names(result)
    assert len({body["messages"][0]["content"] for body in bodies}) == 2


def test_shared_prefixes_are_in_the_records(tmp_path):
    result, bodies = sweep(tmp_path, shared_prefix_tokens=30, num_prefixes=2, num_trials=2)
    assert {r.prefix_tokens for r in result.requests} == {30}
    assert counted_as_asked(result)
    beginnings = {" ".join(body["messages"][0]["content"].split()[:8]) for body in bodies}
    assert 2 <= len(beginnings) <= 4  # of two prefixes in each of two trials, by lot
    assert len({body["messages"][0]["content"] for body in bodies}) == len(bodies)
    assert "30 tokens shared, 2 different" in result.workload.prompts


def test_blocks_of_a_trace_are_shared_text(tmp_path):
    trace = tmp_path / "trace.jsonl"
    rows = [{"timestamp": 0, "input_length": 700, "output_length": 2, "hash_ids": [1, 2]},
            {"timestamp": 5, "input_length": 690, "output_length": 2, "hash_ids": [1, 3]}]
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result, bodies = sweep(tmp_path, trace=str(trace), num_requests=None)
    assert counted_as_asked(result)
    assert [r.prefix_tokens for r in result.requests] == [512, 512]
    one, two = (body["messages"][0]["content"].split() for body in bodies)
    same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, two)))
    assert 490 <= same <= 512


@pytest.mark.parametrize(("options", "problem"), [
    ({"prompt_tokens": ("data",)}, "only where prompt_data names a data set"),
    ({"prompt_text": "/nowhere"}, "cannot be read"), ({"prompt_data": "/nowhere"}, "cannot be read"),
    ({"prompt_text": "a", "prompt_data": "b"}, "given one at a time"),
    ({"prompt_tokens": ("9-3",)}, "prompt_tokens must be"), ({"shared_prefix_tokens": 58}, "below the floor of 63"),
    ({"prompt_tokens": ("3-90",)}, "below the floor of 5"), ({"num_prefixes": 0}, "num_prefixes must be"),
    ({"shared_prefix_tokens": 8, "trace": "x"}, "shared_prefix_tokens must be 0 with a trace"),
    ({"prompt_tokens": ("9-30",), "prompt_tokens_stddev": 2.0}, "prompt_tokens_stddev must be")])
def test_wrong_prompts_are_refused_before_anything_is_measured(tmp_path, options, problem):
    with pytest.raises(ConfigError, match=problem):
        sweep(tmp_path, **options)
    assert not (tmp_path / "out" / "results.json").exists()


def test_conversations_of_a_data_set_go_through_its_turns(tmp_path):
    def log(*turns):
        return {"conversations": [m for text in turns for m in ({"from": "human", "value": text},
                                                                {"from": "gpt", "value": "Its own answer."})]}

    data = write(tmp_path, log("One?", "Two?", "Three?"), log("Too short?"), log("Who?", "Where?", "Why?", "When?"))
    result, bodies = sweep(tmp_path, prompt_data=data, prompt_tokens=("data",), session_turns=3, num_requests=6)
    (cell,) = result.cells
    assert (cell.num_done, cell.errors, cell.status) == (6, {}, "complete")
    assert counted_as_asked(result)
    turns = [[m["content"] for m in body["messages"] if m["role"] == "user"] for body in bodies]
    last = sorted(texts for texts in turns if len(texts) == 3)
    assert sorted([texts[0].split(" ", 1)[1], *texts[1:]] for texts in last) == [["One?", "Two?", "Three?"],
                                                                             ["Who?", "Where?", "Why?"]]
    answers = {m["content"] for body in bodies for m in body["messages"] if m["role"] == "assistant"}
    assert "Its own answer." not in answers
    with pytest.raises(ConfigError, match="no conversation has 5 turns"):
        sweep(tmp_path, prompt_data=data, prompt_tokens=("data",), session_turns=5)


def test_conversations_may_share_their_beginning(tmp_path):
    result, _ = sweep(tmp_path, shared_prefix_tokens=20, session_turns=2)
    assert {r.prefix_tokens for r in result.requests if r.turn == 0} == {20}
    assert counted_as_asked(result)


def test_a_run_is_not_gone_on_with_other_prompts(tmp_path):
    (tmp_path / "text").write_text(TEXT)
    sweep(tmp_path, prompt_text=str(tmp_path / "text"))
    for options in ({}, {"prompt_text": str(tmp_path / "text"), "shared_prefix_tokens": 5}):
        with pytest.raises(ConfigError, match="resume: the earlier run's prompts were stretches of a text file"):
            sweep(tmp_path, resume=True, **options)
    (tmp_path / "text").rename(tmp_path / "moved")
    result, _ = sweep(tmp_path, resume=True, prompt_text=str(tmp_path / "moved"), num_trials=1)
    assert len(result.cells) == 1
