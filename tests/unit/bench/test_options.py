import dataclasses

import pytest
from helpers.bench import spec

from pelton.bench.client import now_ns
from pelton.bench.options import ReportOptions, ServeOptions, SweepOptions
from pelton.bench.run import _deadline, command_line
from pelton.config import field_docs
from pelton.errors import ConfigError


@pytest.mark.parametrize("cls", [ServeOptions, SweepOptions, ReportOptions])
def test_every_field_is_explained(cls):
    docs = field_docs(cls)
    assert [f.name for f in dataclasses.fields(cls) if not docs.get(f.name)] == []


@pytest.mark.parametrize(("changes", "field"), [
    ({"url": " "}, "url"), ({"concurrency": ()}, "concurrency"), ({"concurrency": (0,)}, "concurrency"),
    ({"concurrency": (2, 2)}, "concurrency"), ({"prompt_tokens": (-1,)}, "prompt_tokens"),
    ({"output_tokens": 0}, "output_tokens"), ({"num_requests": 0}, "num_requests"), ({"num_warmup": -1}, "num_warmup"),
    ({"temperature": -1.0}, "temperature"), ({"temperature": float("nan")}, "temperature"),
    ({"request_timeout": 0.0}, "request_timeout"), ({"duration_budget": 0.0}, "duration_budget"),
    ({"token_ids": True}, "token_ids"), ({"output_dir": ""}, "output_dir")])
def test_wrong_values_name_their_field(changes, field):
    with pytest.raises(ConfigError, match=f"^{field} must be"):
        SweepOptions(**{"url": "http://x", **changes})


def test_command_line_repeats_the_run_without_the_key():
    options = SweepOptions(url="http://x:1", concurrency=(1, 2), api_key="secret", fixed_output=False, seed=3)
    words = "pelton bench sweep http://x:1 --no-fixed-output --seed 3 --concurrency 1,2"
    assert command_line("sweep", options) == words


def test_budget_is_shared_out_by_size_and_savings_go_on():
    small, large = spec(concurrency=8, prompt_tokens=16), spec(concurrency=1, prompt_tokens=900)
    start = now_ns()
    share = _deadline(start + 1_000_000_000, [small, large]) - start
    assert 0 < share < 500_000_000
    assert _deadline(start + 10**9, [large]) == pytest.approx(start + 10**9, abs=10)
    assert _deadline(None, [small]) is None
