"""Protocols other than OpenAI's, from the first look at a server to the records, against stand-ins for each dialect."""

from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

import msgspec
import pytest
from helpers import dialect_servers
from helpers.bench import UNWATCHED, prompt_counter
from helpers.calibrated import serve_in_thread
from helpers.tokenizers import write_tokenizer

from pelton.bench.calibration import Behaviour
from pelton.bench.files import read_result
from pelton.bench.options import ServeOptions, SweepOptions
from pelton.bench.serve import run_serve
from pelton.bench.sweep import run_sweep
from pelton.errors import ConfigError, ServerError
from pelton.tokenizer.tokenizer import Tokenizer

TINY = Path(str(files("pelton") / "models_data" / "pelton-tiny"))
TOKENIZER = Tokenizer.from_dir(TINY)


def count(text):
    return len(TOKENIZER.encode(text))


def triton(backend):
    return dialect_servers.serve(dialect_servers.triton(backend), count)


def ollama():
    return dialect_servers.serve(dialect_servers.ollama(lambda messages: len(TOKENIZER.encode_chat(messages))), count)


def run(made, folder, *, command=run_sweep, kind=SweepOptions, **options):
    fields = {"concurrency": (2,), "prompt_tokens": ("30",), "output_tokens": ("6",), "num_requests": 6,
              "num_warmup": 1, "output_dir": str(folder), "calibrate": False, **UNWATCHED, "request_timeout": 20.0,
              "tokenizer": "pelton-tiny", **options}
    assert command(kind(url=made.url, **fields)) == 0
    return read_result(folder / "results.json")


@contextmanager
def openai(**behaviour):
    """The calibration server, with the tokenizer of the shipped model."""
    with serve_in_thread(Behaviour(model="tiny", count_prompt=prompt_counter(TINY), **behaviour)) as made:
        yield made


def names(result):
    return {f.name for f in result.findings}


@pytest.mark.parametrize(("backend", "control"), [("trtllm", "min_tokens"), ("vllm", "ignore_eos+min_tokens"),
                                                  ("plain", "max_tokens")])
def test_triton_streams(tmp_path, backend, control):
    with triton(backend) as made:
        result = run(made, tmp_path)
    target = result.target
    assert (target.protocol, target.endpoint, target.model) == ("triton", "generate", "ensemble")
    assert target.output_control == control
    assert target.reports_stream_usage == (backend != "plain")
    for record in result.requests:
        assert record.error is None
        assert record.client_prompt_tokens == record.requested_prompt_tokens == 30
        assert record.server_prompt_tokens == (None if backend == "plain" else 30)
        assert record.num_chunks == len(record.content_us) == (2 if backend == "plain" else 6)
        assert record.finish_reason == ("length" if backend == "vllm" else None)
    if backend != "plain":
        assert {(r.output_tokens, r.output_tokens_source) for r in result.requests} == {(6, "server")}
    assert ("output_lengths_differ" in names(result)) == (backend == "plain")


@pytest.mark.parametrize("backend", ["trtllm", "vllm"])
@pytest.mark.parametrize("protocol", ["triton", "kserve"])
def test_whole_answers_of_triton_and_kserve(tmp_path, backend, protocol):
    with triton(backend) as made:
        result = run(made, tmp_path, command=run_serve, kind=ServeOptions, protocol=protocol, prompt_tokens="30",
                     output_tokens="6")
    assert [c.is_stream for c in result.cells] == ([False, True] if protocol == "triton" else [False])
    assert {(r.server_prompt_tokens, r.output_tokens, r.error) for r in result.requests} == {(30, 6, None)}
    assert result.target.protocol == protocol
    assert ("inputs" in made.bodies[-1]) == (protocol == "kserve")


def test_open_ended_output_is_open_ended_in_every_backend(tmp_path):
    for backend in ("trtllm", "vllm"):
        with triton(backend) as made:
            result = run(made, tmp_path / backend, fixed_output=False)
        assert result.target.output_control == "max_tokens"
        assert {r.output_tokens for r in result.requests} == {dialect_servers.NATURAL_LENGTH}


def test_tritons_model_can_be_named_and_must_generate(tmp_path):
    with triton("trtllm") as made:
        assert run(made, tmp_path, model="ensemble").target.model == "ensemble"
        for model in ("preprocessing", "nothing"):
            with pytest.raises(ConfigError, match=f"model '{model}' is not served at .* or takes no text_input"):
                run(made, tmp_path, model=model, protocol="triton")
        with pytest.raises(ConfigError, match="token_ids must be off"):
            run(made, tmp_path, protocol="triton", token_ids=True, endpoint="completions")
        with pytest.raises(ConfigError, match=r"^session_turns must be 1 unless endpoint is chat"):
            run(made, tmp_path, protocol="triton", session_turns=2)


@pytest.mark.parametrize(("backend", "name"), [("vllm", "sampling_parameters"), ("plain", "parameters")])
def test_added_sampling_fields_join_those_of_the_benchmark(tmp_path, backend, name):
    with triton(backend) as made:
        run(made, tmp_path, extra_inputs=msgspec.json.encode({name: {"top_p": 0.5}}).decode())
    sent = made.bodies[-1][name]
    sent = msgspec.json.decode(sent) if isinstance(sent, str) else sent
    assert (sent["top_p"], sent["max_tokens"], sent["temperature"]) == (0.5, 6, 0.0)


def test_added_fields_that_triton_would_not_follow_are_refused(tmp_path):
    with triton("trtllm") as made:
        with pytest.raises(ConfigError, match="must leave out top_k, by which this model is asked for temperature 0"):
            run(made, tmp_path, extra_inputs="top_k:5")
        with pytest.raises(ConfigError, match="must name inputs of the model, which has no top_q"):
            run(made, tmp_path, protocol="kserve", extra_inputs="top_q:5")
        run(made, tmp_path, extra_inputs="top_k:5", temperature=0.5)
    assert (made.bodies[-1]["top_k"], made.bodies[-1]["temperature"]) == (5, 0.5)


def test_added_options_of_ollama_join_those_of_the_benchmark(tmp_path):
    with ollama() as made:
        run(made, tmp_path, protocol="ollama", model="tiny", extra_inputs='{"options": {"num_ctx": 4096}}')
    assert made.bodies[-1]["options"] == {"num_ctx": 4096, "num_predict": 6, "temperature": 0.0}


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_ollamas_own_api(tmp_path, endpoint):
    with ollama() as made:
        result = run(made, tmp_path, protocol="ollama", model="tiny", endpoint=endpoint, extra_inputs="keep_alive:5m")
    assert (result.target.protocol, result.target.model, result.target.output_control) == ("ollama", "tiny:latest",
                                                                                          "max_tokens")
    assert result.target.extra_inputs == {"keep_alive": "5m"}
    assert all(body["keep_alive"] == "5m" for body in made.bodies)
    for record in result.requests:
        assert (record.server_prompt_tokens, record.output_tokens, record.finish_reason) == (30, 6, "length")
        assert len(record.content_us) == 6
        assert record.num_chunks == 7
    whole = run_whole(tmp_path)
    assert {(r.server_prompt_tokens, r.output_tokens) for r in whole.requests} == {(30, 6)}


def run_whole(folder):
    with ollama() as made:
        return run(made, folder / "whole", command=run_serve, kind=ServeOptions, protocol="ollama", prompt_tokens="30",
                   output_tokens="6")


def is_measured(body):
    """Probes ask for two tokens."""
    return "6" in str({name: value for name, value in body.items() if name not in ("text_input", "messages", "prompt")})


@pytest.mark.parametrize(("fault", "kind"), [("500", "http_500"), ("drop", "dropped"), ("malformed", "malformed"),
                                             ("error", "stream_error")])
@pytest.mark.parametrize("server", ["triton", "ollama"])
def test_single_failures_are_counted_by_kind_and_the_rest_is_kept(tmp_path, server, fault, kind):
    with triton("trtllm") if server == "triton" else ollama() as made:
        made.fault = lambda number, body: fault if is_measured(body) and number % 4 == 0 else None
        result = run(made, tmp_path, protocol=server, num_requests=12)
    failed = [r for r in result.requests if r.error is not None]
    assert {r.error for r in failed} == {kind}
    assert 2 <= len(failed) <= 4
    assert len(result.requests) == 13
    assert "requests_failed" in names(result)


@pytest.mark.parametrize(("fault", "line"), [
    ("500", "http_500"), ("hang", "hung: no full answer within 0.2 s"), ("malformed", "malformed"),
    ("drop", "dropped")])
@pytest.mark.parametrize("protocol", ["triton", "kserve", "ollama"])
def test_servers_that_never_work_are_one_line(tmp_path, protocol, fault, line):
    with ollama() if protocol == "ollama" else triton("trtllm") as made:
        made.fault = lambda number, body: fault
        with pytest.raises(ServerError, match=line):
            run(made, tmp_path, protocol=protocol, request_timeout=0.2)


@pytest.mark.parametrize("server", ["triton", "ollama"])
def test_answers_without_text_are_noticed(tmp_path, server):
    with triton("trtllm") if server == "triton" else ollama() as made:
        made.fault = lambda number, body: "empty" if is_measured(body) else None
        result = run(made, tmp_path, protocol=server)
    assert {r.error for r in result.requests} == {None}
    assert {"answers_empty", "output_lengths_differ"} <= names(result)
    assert all(c.distribution("ttft") is None for c in result.cells)


@pytest.mark.parametrize("protocol", ["triton", "ollama"])
def test_another_models_tokenizer_is_refused(tmp_path, protocol):
    other = write_tokenizer(tmp_path / "other")
    with ollama() if protocol == "ollama" else triton("trtllm") as made:
        with pytest.raises(ConfigError, match="does not match the served model"):
            run(made, tmp_path, protocol=protocol, tokenizer=str(other))


def test_a_server_of_another_kind_is_told(tmp_path):
    with ollama() as made, pytest.raises(ConfigError, match="does not list its models; give model"):
        run(made, tmp_path, protocol="triton")
    with triton("trtllm") as made, pytest.raises(ConfigError, match="lists no models; give model"):
        run(made, tmp_path, protocol="ollama")


def test_ollamas_streams_are_given_up_by_time_only(tmp_path):
    with ollama() as made:
        with pytest.raises(ConfigError, match="cancellation_delay must be given"):
            run(made, tmp_path, protocol="ollama", cancellation_rate=0.5)
        made.fault = lambda number, body: "hang" if is_measured(body) else None
        result = run(made, tmp_path, protocol="ollama", cancellation_rate=1.0, cancellation_delay=0.01, num_warmup=0)
    assert {(r.was_cancelled, r.error) for r in result.requests} == {(True, None)}


def test_reasoning_is_stamped_apart(tmp_path):
    with openai(num_reasoning=2, itl_s=0.002) as made:
        result = run(made, tmp_path)
    for record in result.requests:
        assert (record.output_tokens, len(record.content_us), record.error) == (6, 6, None)
        assert abs(record.first_reasoning_us - record.first_text_us) <= 1  # both are rounded down
        assert record.first_text_us < record.first_content_us
    (cell,) = result.cells
    assert cell.distribution("first_reasoning").p50 < cell.distribution("ttft").p50


def test_openai_answers_without_text_are_noticed(tmp_path):
    with openai(fault=lambda number, body: "empty" if body["max_tokens"] == 6 else None) as made:
        result = run(made, tmp_path)
    assert {(r.error, r.output_tokens) for r in result.requests} == {(None, 0)}
    assert {"answers_empty", "output_lengths_differ"} <= names(result)


@pytest.mark.parametrize(("refused", "control"), [
    (set(), "ignore_eos+min_tokens"), ({"min_tokens"}, "ignore_eos"), ({"min_tokens", "ignore_eos"}, "max_tokens")])
@pytest.mark.parametrize("fixed", [True, False])
def test_extra_fields_and_output_control_reach_every_request(tmp_path, refused, control, fixed):
    with openai(refused_fields=frozenset(refused)) as made:
        result = run(made, tmp_path, extra_inputs='{"cache_prompt": false}', fixed_output=fixed)
    assert result.target.output_control == (control if fixed else "max_tokens")
    assert all(body["cache_prompt"] is False for body in made.bodies)
    asked = [body for body in made.bodies if body["max_tokens"] == 6]
    assert all(("ignore_eos" in body) == ("ignore_eos" in result.target.output_control) for body in asked)
    assert all(("min_tokens" in body) == ("min_tokens" in result.target.output_control) for body in asked)
    assert result.workload.fixed_output == fixed
