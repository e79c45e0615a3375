import argparse
import dataclasses

import pytest

from pelton.bench.options import ReportOptions, SearchOptions, ServeOptions, SweepOptions
from pelton.bench.results import LoadSpec, LoadStage
from pelton.bench.run import command_line
from pelton.config import field_docs
from pelton.errors import ConfigError
from pelton.options import add_options, read_options


@pytest.mark.parametrize("cls", [ServeOptions, SweepOptions, ReportOptions])
def test_every_field_is_explained(cls):
    docs = field_docs(cls)
    assert [f.name for f in dataclasses.fields(cls) if not docs.get(f.name)] == []


@pytest.mark.parametrize(("changes", "field"), [
    ({"url": " "}, "url"), ({"concurrency": ()}, "concurrency"), ({"concurrency": (0,)}, "concurrency"),
    ({"concurrency": (2, 2)}, "concurrency"), ({"prompt_tokens": (-1,)}, "prompt_tokens"),
    ({"output_tokens": (0,)}, "output_tokens"), ({"num_requests": 0}, "num_requests"),
    ({"num_warmup": -1}, "num_warmup"),
    ({"temperature": -1.0}, "temperature"), ({"temperature": float("nan")}, "temperature"),
    ({"request_timeout": 0.0}, "request_timeout"), ({"duration_budget": 0.0}, "duration_budget"),
    ({"token_ids": True}, "token_ids"), ({"num_trials": 0}, "num_trials"), ({"request_rate": (0.0,)}, "request_rate"),
    ({"burstiness": 0.0}, "burstiness"), ({"arrivals": "gamma"}, "burstiness"), ({"max_in_flight": 0}, "max_in_flight"),
    ({"cancellation_rate": 1.5}, "cancellation_rate"), ({"measurement_duration": 0.0}, "measurement_duration"),
    ({"trace_speed_up": 0.0}, "trace_speed_up"), ({"stages": "1:1", "trace": "x"}, "stages and trace"),
    ({"output_dir": ""}, "output_dir"), ({"prompt_tokens": (99999999999,)}, "prompt_tokens"),
    ({"session_turns": 2, "session_turn_tokens": 99999999999}, "session_turn_tokens"),
    ({"output_tokens_stddev": 99999999999.0}, "output_tokens_stddev")])
def test_wrong_values_name_their_field(changes, field):
    with pytest.raises(ConfigError, match=f"^{field} must be"):
        SweepOptions(**{"url": "http://x", **changes})


RATE, SEARCH_RATE = {"request_rate": (5.0,)}, {"search_for": "request_rate"}


@pytest.mark.parametrize(("changes", "field"), [
    ({**RATE, "concurrency": (1, 2)}, "concurrency"), ({"stages": "5:3", "concurrency": (4,)}, "concurrency"),
    ({"trace": "t", "concurrency": (4,)}, "concurrency"), ({"trace": "t", "prompt_tokens": (64,)}, "prompt_tokens"),
    ({"trace": "t", "prompt_tokens_stddev": 3.0, "prompt_tokens": (64,)}, "prompt_tokens"),
    ({"trace": "t", "output_tokens": (3,)}, "output_tokens"), ({**RATE, "ramp_up": 5.0}, "ramp_up"),
    ({"stages": "c1:3", "ramp_up": 5.0}, "ramp_up"), ({"burstiness": 2.0}, "burstiness"),
    ({"stages": "5:3", "burstiness": 2.0}, "burstiness"), ({"arrivals": "constant"}, "arrivals"),
    ({**RATE, "arrivals": "constant", "burstiness": 0.5}, "burstiness"),
    ({"cancellation_delay": 1.0}, "cancellation_delay"), ({"num_prefixes": 4}, "num_prefixes"),
    ({"think_time": 1.0}, "think_time"), ({"session_turn_tokens": 9}, "session_turn_tokens"),
    ({"session_turns": 2, "session_turn_tokens": 9, "prompt_data": "x", "prompt_tokens": ("data",)},
     "session_turn_tokens"),
    ({"max_in_flight": 3}, "max_in_flight"), ({"max_in_flight": 3, "concurrency": (4,)}, "max_in_flight"),
    ({"trace_speed_up": 2.0}, "trace_speed_up"), ({"unique_prompts": False}, "unique_prompts")])
def test_options_that_would_do_nothing_are_refused(changes, field):
    with pytest.raises(ConfigError, match=f"^{field} must be left out"):
        SweepOptions(url="http://x", **changes)


@pytest.mark.parametrize(("changes", "field"), [
    ({"concurrency": (4,)}, "concurrency"), ({"max_in_flight": 3}, "max_in_flight"),
    ({"burstiness": 2.0}, "burstiness"), ({**SEARCH_RATE, "ramp_up": 1.0}, "ramp_up"),
    ({"attainment": 90.0}, "attainment"), ({"goodput": "ttft:100", "knee_gain": 5.0}, "knee_gain"),
    ({**SEARCH_RATE, "knee_gain": 5.0}, "knee_gain")])
def test_a_search_refuses_options_that_would_do_nothing(changes, field):
    with pytest.raises(ConfigError, match=f"^{field} must be left out"):
        SearchOptions(url="http://x", **changes)


def test_stages_of_requests_in_flight_have_no_other_limit():
    with pytest.raises(ConfigError, match=r"^max_in_flight must be left out with stages of requests in flight"):
        SweepOptions(url="http://x", stages="c1:3", max_in_flight=3).loads(())
    assert SweepOptions(url="http://x", stages="1:3", max_in_flight=3).loads(())[0].max_in_flight == 3


@pytest.mark.parametrize("changes", [
    {**RATE, "burstiness": 2.0, "max_in_flight": 3}, {**RATE, "arrivals": "constant"},
    {"concurrency": (4,), "ramp_up": 1.0}, {**RATE, "concurrency": (1, 2, 4, 8)}, {"trace": "t", "trace_speed_up": 2.0},
    {"session_turns": 2, "think_time": 1.0, "session_turn_tokens": 9}, {"shared_prefix_tokens": 8, "num_prefixes": 4},
    {"cancellation_rate": 0.5, "cancellation_delay": 1.0}, {"prompt_text": "x", "unique_prompts": False}])
def test_options_that_do_something_or_are_the_defaults_are_taken(changes):
    SweepOptions(url="http://x", **changes)


def test_a_search_takes_what_shapes_its_rates():
    options = SearchOptions(url="http://x", **SEARCH_RATE, arrivals="constant", max_in_flight=3)
    load = options.load_at(7.0)
    assert (load.kind, load.rate, load.max_in_flight) == ("constant", 7.0, 3)


@pytest.mark.parametrize(("text", "name", "instead"), [
    ("temperature:0.7", "temperature", "give temperature"), ("ignore_eos:false", "ignore_eos", "no-fixed-output"),
    ("min_tokens:0", "min_tokens", "no-fixed-output"), ("max_tokens:5", "max_tokens", "output_tokens"),
    ("max_completion_tokens:5", "max_completion_tokens", "output_tokens"), ("stream:false", "stream", "serve"),
    ('{"stream_options": {}}', "stream_options", "serve"), ("model:x", "model", "give model"),
    ("prompt:x", "prompt", "prompt_tokens"), ('{"messages": []}', "messages", "prompt_tokens"),
    ("top_k:5,n:2", "n", "one answer"), ('{"options": {"num_ctx": 9, "num_predict": 3}}', "num_predict", "output_tok"),
    ('{"sampling_parameters": {"temperature": 1}}', "temperature", "give temperature"),
    ("return_num_output_tokens:false", "return_num_output_tokens", "counts")])
def test_added_fields_that_the_benchmark_decides_are_refused(text, name, instead):
    with pytest.raises(ConfigError, match=f"^extra_inputs must leave out {name}, .*{instead}"):
        SweepOptions(url="http://x", extra_inputs=text)


def test_added_fields_of_a_server_are_taken():
    text = '{"top_k": 5, "options": {"num_ctx": 9}, "chat_template_kwargs": {"enable_thinking": false}}'
    assert SweepOptions(url="http://x", extra_inputs=text).extra_fields["options"] == {"num_ctx": 9}
    with pytest.raises(ConfigError, match="extra_inputs: parameters must be a JSON object"):
        SweepOptions(url="http://x", extra_inputs="parameters:3")


def test_command_line_repeats_the_run_without_the_key():
    options = SweepOptions(url="http://x:1", concurrency=(1, 2), api_key="secret", fixed_output=False, seed=3)
    words = "pelton bench sweep http://x:1 --no-fixed-output --seed 3 --concurrency 1,2"
    assert command_line("sweep", options) == words


def test_genai_perfs_names_are_understood():
    parser = argparse.ArgumentParser()
    add_options(parser, SweepOptions, positional=("url",))
    words = ("http://x -m tiny --request-count 5 --synthetic-input-tokens-mean 9 --output-tokens-mean 3 "
             "--random-seed 4 --artifact-dir d --output-format json --request-rate 2.5 --measurement-duration 9")
    options = read_options(SweepOptions, parser.parse_args(words.split()))
    assert (options.model, options.num_requests) == ("tiny", 5)
    assert (list(map(str, options.prompt_tokens)), list(map(str, options.output_tokens))) == (["9"], ["3"])
    assert (options.seed, options.output_dir, options.prints_json) == (4, "d", True)
    assert (options.request_rate, options.measurement_duration) == ((2.5,), 9.0)


@pytest.mark.parametrize(("changes", "loads"), [
    ({"concurrency": (2,)}, [LoadSpec(kind="closed", concurrency=2, num_requests=32)]),
    ({"concurrency": (2,), "measurement_duration": 9.0}, [LoadSpec(kind="closed", concurrency=2, duration_s=9.0)]),
    ({"request_rate": (1.0, 2.0), "num_requests": 7, "cancellation_rate": 0.1},
     [LoadSpec(kind="poisson", rate=rate, num_requests=7, max_in_flight=4096, cancellation_rate=0.1)
      for rate in (1.0, 2.0)]),
    ({"request_rate": (1.0,), "burstiness": 0.5},
     [LoadSpec(kind="gamma", rate=1.0, burstiness=0.5, num_requests=32, max_in_flight=4096)]),
    ({"stages": "5:2"}, [LoadSpec(kind="stages", max_in_flight=4096, stages=[
        LoadStage(name="1: 5/s", rate=5, end_rate=5, duration_s=2)])]),
    ({"trace": "t.jsonl", "trace_speed_up": 2.0},
     [LoadSpec(kind="trace", trace="t.jsonl", speed_up=2.0, max_in_flight=4096)])])
def test_loads_that_are_asked_for(changes, loads):
    options = SweepOptions(url="http://x", **changes)
    assert options.loads(options.concurrency) == loads
