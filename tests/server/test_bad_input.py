"""Every kind of bad request gets a 4xx with OpenAI's error object that names the field; nothing of it runs."""

import json

import pytest
from helpers.live_server import MODEL

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
USER = [{"role": "user", "content": "fox"}]
CHAT_OK = {"model": MODEL, "messages": USER}
COMPLETION_OK = {"model": MODEL, "prompt": "fox"}


def error(response, status=400):
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    assert "\n" not in body["error"]["message"]
    return body["error"]


BAD_VALUES = [
    ("temperature", -1), ("temperature", 1e9), ("temperature", "hot"), ("temperature", True),
    ("top_p", 0), ("top_p", -0.1), ("top_p", 1.1), ("top_p", [1]),
    ("top_k", -2), ("top_k", 1.5), ("min_p", 2), ("presence_penalty", 3), ("frequency_penalty", -3),
    ("repetition_penalty", 0), ("repetition_penalty", -1), ("n", 0), ("n", 129), ("n", "2"), ("n", 1.5),
    ("seed", 2**63), ("seed", "x"), ("max_tokens", -1), ("max_tokens", "many"), ("max_tokens", 10**30),
    ("min_tokens", -1), ("min_tokens", 10**6), ("stop", ""), ("stop", ["a", ""]), ("stop", 5), ("stop", [5]),
    ("stop", ["x"] * 65), ("stop", "x" * 2000), ("stop_token_ids", [-1]), ("stop_token_ids", "a"),
    ("stop_token_ids", [10**12]),
    ("stop_token_ids", [1] * 2000), ("bad_words", [""]), ("bad_words", "dog"),
    ("logit_bias", {"x": 1}), ("logit_bias", {"999999": 1}), ("logit_bias", {"-1": 1}), ("logit_bias", {"1": 101}),
    ("logit_bias", [1]), ("logit_bias", {"9" * 5000: 1}),
    ("prompt_logprobs", -1), ("prompt_logprobs", 21), ("ignore_eos", "yes"), ("stream", "yes"), ("stream", 1),
    ("stream_options", {"include_usage": True}), ("priority", 2**40), ("cache_salt", "x" * 1000), ("user", 5),
]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    from helpers.fake_engine import FakeEngineClient
    from helpers.live_server import LiveServer
    from helpers.tokenizers import write_tokenizer

    from pelton.tokenizer.tokenizer import Tokenizer

    folder = write_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    tokenizer = Tokenizer.from_dir(folder)
    server = LiveServer(FakeEngineClient(tokenizer), tokenizer, folder)
    yield server
    assert server.engine.requests == [], "nothing here may reach the engine"
    server.close()


@pytest.mark.parametrize("route", [CHAT, COMPLETIONS])
@pytest.mark.parametrize(("field", "value"), BAD_VALUES, ids=str)
def test_bad_value_names_its_field(shared, route, field, value):
    body = {**(CHAT_OK if route == CHAT else COMPLETION_OK), field: value}
    told = error(shared.post(route, body))
    assert told["type"] == "invalid_request_error"
    assert told["param"].startswith(field)
    assert field in told["message"]


@pytest.mark.parametrize(("body", "param", "words"), [
    ({"messages": []}, "messages", "empty"),
    ({"messages": "fox"}, "messages", "expected"),
    ({"messages": ["fox"]}, "messages[0]", "expected"),
    ({"messages": [{"content": "fox"}]}, "messages[0].role", "role"),
    ({"messages": [{"role": 5, "content": "fox"}]}, "messages[0].role", "role"),
    ({"messages": [*USER, {"role": "user"}]}, "messages[1].content", "missing"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "string"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "5"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]}, "messages",
     "text only"),
    ({"messages": [{"role": "user", "content": "fox " * 1000}]}, "messages", "at most 200 tokens"),
    ({"max_tokens": 0}, "max_tokens", "at least 1"),
    ({"max_completion_tokens": 0}, "max_completion_tokens", "at least 1"),
    ({"max_completion_tokens": 256}, "max_completion_tokens", "256 tokens"),
    ({"logprobs": 3}, "logprobs", "expected"),
    ({"top_logprobs": 3}, "top_logprobs", "needs logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "between 0 and 20"),
    ({"tools": [{"type": "function"}]}, "tools", "not supported yet"),
    ({"tool_choice": "required"}, "tool_choice", "not supported yet"),
    ({"functions": [{}]}, "functions", "not supported yet"),
    ({"response_format": {"type": "json_schema"}}, "response_format", "not supported yet"),
    ({"response_format": {"type": "json_object"}}, "response_format", "not supported yet"),
    ({"modalities": ["text", "audio"]}, "modalities", "text only"),
    ({"audio": {}}, "audio", "text only"),
    ({"web_search_options": {}}, "web_search_options", "not supported"),
    ({"stream_options": {"include_use": True}, "stream": True}, "stream_options", "include_use"),
    ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs", "stream"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs", "messages"),
    ({"prompt": "fox"}, "prompt", "unknown field"),
])
def test_bad_conversation(shared, body, param, words):
    told = error(shared.post(CHAT, {**CHAT_OK, **body}))
    assert told["param"] == param
    assert words in told["message"]


@pytest.mark.parametrize(("body", "param", "words"), [
    ({"prompt": ""}, "prompt", "empty"),
    ({"prompt": []}, "prompt", "empty"),
    ({"prompt": [[]]}, "prompt", "empty"),
    ({"prompt": ["fox", ""]}, "prompt[1]", "empty"),
    ({"prompt": None}, "prompt", "must be a string"),
    ({"prompt": 5}, "prompt", "must be a string"),
    ({"prompt": ["fox", 5]}, "prompt", "must be a string"),
    ({"prompt": [1.5]}, "prompt", "must be a string"),
    ({"prompt": [True]}, "prompt", "must be a string"),
    ({"prompt": [[1], "fox"]}, "prompt", "must be a string"),
    ({"prompt": [-1]}, "prompt", "token id -1"),
    ({"prompt": [1, 10**6]}, "prompt", "token id 1000000"),
    ({"prompt": [10**30]}, "prompt", "token id"),
    ({"prompt": "fox " * 1000}, "prompt", "at most 200 tokens"),
    ({"prompt": [5] * 201}, "prompt", "at most 200 tokens"),
    ({"prompt": ["fox"] * 5000}, "prompt", "4096"),
    ({"prompt": [5] * 200, "max_tokens": 57}, "max_tokens", "256 tokens"),
    ({"max_tokens": 0}, "max_tokens", "at least 1"),
    ({"logprobs": 21}, "logprobs", "between 0 and 20"),
    ({"logprobs": -1}, "logprobs", "between 0 and 20"),
    ({"logprobs": True}, "logprobs", "expected"),
    ({"best_of": 2}, "best_of", "only best_of = n"),
    ({"suffix": "x"}, "suffix", "not supported yet"),
    ({"echo": "yes"}, "echo", "expected"),
    ({"max_completion_tokens": 5}, "max_completion_tokens", "unknown field"),
])
def test_bad_completion(shared, body, param, words):
    told = error(shared.post(COMPLETIONS, {**COMPLETION_OK, **body}))
    assert told["param"] == param
    assert words in told["message"]


def test_too_long_is_told_by_openai_code(shared):
    assert error(shared.post(COMPLETIONS, {"prompt": [5] * 201}))["code"] == "context_length_exceeded"
    assert error(shared.post(COMPLETIONS, {"prompt": [5], "max_tokens": 256}))["code"] == "context_length_exceeded"


@pytest.mark.parametrize(("name", "hint"), [
    ("temprature", "did you mean temperature?"), ("max_token", "did you mean max_tokens?"), ("zzz", "no field"),
    ("x" * 100_000, "no field"), ("", "no field"),
])
def test_unknown_field_is_named_with_the_nearest(shared, name, hint):
    told = error(shared.post(CHAT, {**CHAT_OK, name: 1}))
    assert told["param"] == name[:64]
    assert hint in told["message"]
    assert len(told["message"]) < 200


@pytest.mark.parametrize("body", [
    b"", b"{", b"{'a': 1}", b"\xff\xfe", b'{"prompt": "\xff"}', b"[" * 100_000, b'{"prompt": ' + b"[" * 100_000,
    b'{"prompt": NaN}', b'{"prompt": "fox"} x', b"null", b"[]", b'"fox"', b"5",
])
@pytest.mark.parametrize("route", [CHAT, COMPLETIONS])
def test_invalid_json(shared, route, body):
    told = error(shared.post(route, body))
    assert told["code"] == "invalid_json"
    assert "JSON" in told["message"]


def test_deeply_nested_fields(shared):
    deep = b'{"messages": ' + b'[{"role": "user", "content": ' * 400 + b"1" + b"}]" * 400 + b"}"
    error(shared.post(CHAT, deep))


@pytest.mark.parametrize("route", [CHAT, COMPLETIONS])
def test_missing_required_field(shared, route):
    told = error(shared.post(route, {"model": MODEL}))
    assert told["param"] == ("messages" if route == CHAT else "prompt")
    assert told["code"] == "missing_parameter"


@pytest.mark.parametrize("name", ["other", "", 5])
def test_wrong_model(shared, name):
    told = error(shared.post(CHAT, {**CHAT_OK, "model": name}), 400 if name == 5 else 404)
    assert told["param"] == "model"
    assert name == 5 or (told["code"] == "model_not_found" and MODEL in told["message"])


@pytest.mark.parametrize(("method", "path", "status"), [
    ("GET", "/v1/nothing", 404), ("GET", "/v2", 404), ("POST", "/v1", 404), ("GET", CHAT, 405), ("DELETE", CHAT, 405),
    ("PUT", "/health", 405), ("POST", "/v1/models", 405), ("GET", "/v1/models/other", 404),
    ("GET", "/v1/models/../../etc/passwd", 404),
])
def test_wrong_routes_and_methods(shared, method, path, status):
    told = error(shared.http.request(method, path), status)
    assert told["type"] == "invalid_request_error"


def test_rejections_are_counted(shared):
    before = shared.metrics()[("pelton_requests_total", "rejected")]
    error(shared.post(CHAT, {}))
    error(shared.http.get("/nothing"), 404)
    assert shared.metrics()[("pelton_requests_total", "rejected")] == before + 1


def test_template_refusal(serve, tmp_path):
    from helpers.tokenizers import write_tokenizer

    from pelton.tokenizer.tokenizer import Tokenizer

    strict = write_tokenizer(tmp_path / "strict", template="{{ raise_exception('roles must alternate') }}")
    told = error(serve(tokenizer=Tokenizer.from_dir(strict)).post(CHAT, CHAT_OK))
    assert "roles must alternate" in told["message"]
    none = write_tokenizer(tmp_path / "none", template=None)
    server = serve(tokenizer=Tokenizer.from_dir(none))
    assert "--chat-template" in error(server.post(CHAT, CHAT_OK))["message"]
    assert server.post(COMPLETIONS, COMPLETION_OK).status_code == 200


@pytest.mark.parametrize("template", ["", "{{ bos_token }}"])
def test_templates_that_render_nothing(serve, tmp_path, template):
    from helpers.tokenizers import byte_level, write_tokenizer

    from pelton.tokenizer.tokenizer import Tokenizer

    folder = write_tokenizer(tmp_path, byte_level(add_bos=False), template=template)
    response = serve(tokenizer=Tokenizer.from_dir(folder)).post(CHAT, CHAT_OK)
    if template:
        assert response.status_code == 200
    else:
        assert error(response)["code"] == "empty_prompt"


def test_nulls_are_defaults(server):
    fields = ["temperature", "top_p", "n", "stop", "max_tokens", "seed", "logit_bias", "stream", "stream_options",
              "tools", "response_format", "user", "logprobs", "top_logprobs", "functions", "audio", "top_k", "model"]
    assert server.post(CHAT, {"messages": USER, **dict.fromkeys(fields)}).status_code == 200


def test_a_stream_that_is_refused_gets_a_status_not_a_stream(server):
    told = error(server.post(CHAT, {**CHAT_OK, "stream": True, "temperature": -1}))
    assert told["param"] == "temperature"


def test_body_may_be_large_if_the_limit_allows(server):
    body = json.dumps({"prompt": "fox " * 2**20, "max_tokens": 1}).encode()
    assert error(server.post(COMPLETIONS, body))["code"] == "context_length_exceeded"
