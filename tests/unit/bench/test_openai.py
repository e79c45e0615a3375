import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pelton.bench.client import Exchange, Failure
from pelton.bench.framing import Response
from pelton.bench.prompts.prompt import Prompt
from pelton.bench.protocols.answer import error_text
from pelton.bench.protocols.fields import read_fields
from pelton.bench.protocols.openai import OpenAIDialect
from pelton.bench.protocols.sse import read_events
from pelton.errors import ConfigError

DIALECT = OpenAIDialect(model="m", endpoint="chat", temperature=0.5)
STREAM = {"content-type": "text/event-stream; charset=utf-8"}


def exchange(*pieces, status=200, headers=None, failure=None):
    stamped = [(stamp, piece) for stamp, piece in enumerate(pieces, start=1)]
    return Exchange(response=Response(status=status, headers=headers or {}, pieces=stamped), failure=failure)


def event(**data):
    return b"data: " + msgspec.json.encode(data) + b"\n\n"


def delta(text=None, finish_reason=None, **more):
    return event(choices=[{"delta": {"content": text, **more}, "finish_reason": finish_reason}])


DONE = b"data: [DONE]\n\n"
USAGE = event(choices=[], usage={"prompt_tokens": 7, "completion_tokens": 2,
                                 "prompt_tokens_details": {"cached_tokens": 4}})


@pytest.mark.parametrize("pieces", [
    [b"data: one\n\ndata: two\n\n"], [b"data: one\r\n\r\ndata: two\r\n\r\n"],
    [b": comment\n\ndata:one\n\nevent: x\ndata: two\n\n"], [b"data: o", b"ne\r", b"\n\r", b"\ndata: two\n", b"\n"]])
def test_events_in_all_spellings(pieces):
    assert [data for _, data in read_events(enumerate(pieces))] == [b"one", b"two"]


def test_event_carries_the_stamp_of_the_piece_that_completed_it():
    pieces = [(1, b"data: a"), (2, b"\n\ndata: b\n\nda"), (3, b"ta: c\n\n"), (4, b"data: unfinished")]
    assert list(read_events(pieces)) == [(2, b"a"), (2, b"b"), (3, b"c")]


EVENTS = [b"data: one\n\n", b": comment\n\n", b"data: two\ndata: three\n\n", b"data:four\n\n", b"data: five\r\n\r\n",
          b"data: \n\n", b"event: x\ndata: six\n\n", b"data: seven\n\n"]


@given(data=st.data())
def test_any_cut_gives_the_same_events(data):
    whole = b"".join(EVENTS)
    edges = list(itertools.accumulate(map(len, EVENTS)))[:-1]  # where pieces usually end
    cuts = data.draw(st.sets(st.sampled_from(edges) | st.integers(1, len(whole) - 1)).map(sorted))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)])]
    found = [event for _, event in read_events(enumerate(pieces))]
    assert found == [b"one", b"two\nthree", b"four", b"five", b"", b"six", b"seven"]


def test_several_data_lines_are_one_event():
    assert list(read_events([(1, b"data: a\ndata: b\n\n")])) == [(1, b"a\nb")]


def test_stream_counts_only_chunks_with_text():
    answer = DIALECT.read(exchange(delta("", role="assistant"), delta("Hi"), delta(" there"), delta(None, "length"),
                                  USAGE, DONE, headers=STREAM), stream=True)
    assert answer.failure is None
    assert answer.content_ns == [2, 3]
    assert answer.text == "Hi there"
    assert (answer.prompt_tokens, answer.output_tokens, answer.cached_tokens) == (7, 2, 4)
    assert answer.finish_reason == "length"


def test_reasoning_is_generated_text():
    answer = DIALECT.read(exchange(delta(None, reasoning_content="Hm"), delta("Yes", "stop"), DONE, headers=STREAM),
                         stream=True)
    assert answer.content_ns == [1, 2]


def test_completions_stream():
    pieces = [event(choices=[{"text": "a", "finish_reason": None}]), event(choices=[{"text": "b",
                                                                                     "finish_reason": "stop"}]), DONE]
    answer = DIALECT.read(exchange(*pieces, headers=STREAM), stream=True)
    assert (answer.text, answer.content_ns, answer.failure) == ("ab", [1, 2], None)


@pytest.mark.parametrize(("made", "kind"), [
    (exchange(delta("a"), headers=STREAM), "dropped"),
    (exchange(delta("a"), b"data: {\"choices\"\n\n", headers=STREAM), "malformed"),
    (exchange(b"data: []\n\n", headers=STREAM), "malformed"),
    (exchange(event(choices="x"), headers=STREAM), "malformed"),
    (exchange(event(choices=[{"delta": {"content": ["a"]}}]), headers=STREAM), "malformed"),
    (exchange(event(choices=[], usage={"prompt_tokens": -1}), headers=STREAM), "malformed"),
    (exchange(event(error={"message": "worker lost"}), headers=STREAM), "stream_error"),
    (exchange(b"{}", headers={"content-type": "application/json"}), "malformed"),
    (exchange(b'{"error": {"message": "busy"}}', status=503), "http_503"),
    (exchange(delta("a"), headers=STREAM, failure=Failure("timeout", "late")), "timeout")])
def test_streams_that_fail(made, kind):
    assert DIALECT.read(made, stream=True).failure.kind == kind


def test_whole_answer():
    body = {"choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 5, "completion_tokens": 1}}
    answer = DIALECT.read(exchange(msgspec.json.encode(body)), stream=False)
    assert (answer.text, answer.prompt_tokens, answer.output_tokens, answer.failure) == ("Hi", 5, 1, None)


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"choices": []}', b'{"choices": [{"message": 3}]}', b"\xff"])
def test_whole_answers_that_are_none(body):
    assert DIALECT.read(exchange(body), stream=False).failure.kind == "malformed"


@pytest.mark.parametrize(("body", "text"), [
    (b'{"error": {"message": "no\\nway"}}', "no way"), (b'{"error": "no"}', "no"), (b'{"detail": "gone"}', "gone"),
    (b"plain\xff", "plain\ufffd"), (b"", "no message")])
def test_error_text_is_one_line(body, text):
    assert error_text(body) == text


def test_bodies_say_what_was_agreed():
    body = msgspec.json.decode(DIALECT.body(Prompt("hello", None, 5), output_tokens=8, stream=True))
    assert body == {"model": "m", "max_tokens": 8, "temperature": 0.5, "stream": True, "ignore_eos": True,
                    "min_tokens": 8, "messages": [{"role": "user", "content": "hello"}],
                    "stream_options": {"include_usage": True}}
    plain = OpenAIDialect(model="m", endpoint="completions", temperature=0.0, output_control="max_tokens",
                          asks_stream_usage=False, extra={"cache_prompt": False})
    body = msgspec.json.decode(plain.body(Prompt("", [1, 2], 2), output_tokens=8, stream=True))
    assert body == {"model": "m", "max_tokens": 8, "temperature": 0.0, "stream": True, "prompt": [1, 2],
                    "cache_prompt": False}
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    body = msgspec.json.decode(DIALECT.body(Prompt("", None, 9, messages), output_tokens=8, stream=False))
    assert body["messages"] == messages


@pytest.mark.parametrize(("timings", "usage", "counts"), [
    ({"cache_n": 3, "prompt_n": 4, "predicted_n": 2}, None, (7, 2, 3)),
    ({"cache_n": 3, "prompt_n": 4, "predicted_n": 2}, {"prompt_tokens": 8, "completion_tokens": 5}, (8, 5, 3)),
    ({"prompt_n": 4, "predicted_n": 2}, None, (None, 2, None))])
def test_llama_cpps_timings_fill_in_for_usage(timings, usage, counts):
    answer = DIALECT.read(exchange(delta("a"), event(choices=[], usage=usage, timings=timings), DONE, headers=STREAM),
                          stream=True)
    assert (answer.prompt_tokens, answer.output_tokens, answer.cached_tokens) == counts


def test_running_counts_with_each_chunk_do_not_lose_the_cached_tokens():
    answer = DIALECT.read(exchange(
        event(choices=[], usage={"prompt_tokens": 7, "completion_tokens": 1, "prompt_tokens_details": {
            "cached_tokens": 4}}),
        event(choices=[], usage={"prompt_tokens": 7, "completion_tokens": 2, "prompt_tokens_details": None}), DONE,
        headers=STREAM), stream=True)
    assert (answer.output_tokens, answer.cached_tokens) == (2, 4)


def test_an_answer_without_text_is_no_failure():
    answer = DIALECT.read(exchange(delta("", role="assistant"), delta(None, "stop"), USAGE, DONE, headers=STREAM),
                          stream=True)
    assert (answer.failure, answer.text, answer.content_ns, answer.num_chunks) == (None, "", [], 3)


def test_kinds_of_text_have_their_own_first_stamps():
    answer = DIALECT.read(exchange(delta("", role="assistant"), delta(None, reasoning="Hm"), delta("Yes", "stop"), DONE,
                                   headers=STREAM), stream=True)
    assert (answer.first_chunk_ns, answer.first_reasoning_ns, answer.first_content_ns) == (1, 2, 3)
    assert (answer.text, answer.num_chunks) == ("HmYes", 3)


@pytest.mark.parametrize(("text", "fields"), [
    (None, {}), ("a:1,b:false, c:x y", {"a": 1, "b": False, "c": "x y"}), ('{"s": {"t": true}}', {"s": {"t": True}}),
    ("url:http://x", {"url": "http://x"})])
def test_extra_fields(text, fields):
    assert read_fields("extra_inputs", text) == fields


@pytest.mark.parametrize("text", ["a", "a:1,b", '{"a": ', ":1"])
def test_extra_fields_that_are_none(text):
    with pytest.raises(ConfigError, match=r"^extra_inputs"):
        read_fields("extra_inputs", text)
