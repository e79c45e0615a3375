import argparse
import dataclasses

import pytest

from pelton.bench.options import ReportOptions, ServeOptions, SweepOptions
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
    ({"output_dir": ""}, "output_dir")])
def test_wrong_values_name_their_field(changes, field):
    with pytest.raises(ConfigError, match=f"^{field} must be"):
        SweepOptions(**{"url": "http://x", **changes})


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
