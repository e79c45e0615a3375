"""What happens on the wire: chunk framing, clients that leave, bodies that are too large, keys, dead engines."""

import json
import socket

import openai
import pytest
from helpers.fake_engine import REPLY
from helpers.live_server import MODEL

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
STREAM = {"model": MODEL, "prompt": "fox", "max_tokens": 64, "stream": True}


def send_post(sock, body, *, path=COMPLETIONS, headers=()):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(data)}", *headers, "", ""]
    sock.sendall("\r\n".join(lines).encode() + data)


def read_head(stream):
    """Status and headers of a response."""
    status = int(stream.readline().split()[1])
    headers = {}
    while (line := stream.readline().strip()):
        name, _, value = line.decode().partition(":")
        headers[name.lower()] = value.strip()
    return status, headers


def read_chunks(stream):
    """The transfer chunks of a response's body, to their end."""
    while size := int(stream.readline(), 16):
        yield stream.read(size)
        assert stream.read(2) == b"\r\n"
    assert stream.readline() == b"\r\n"


def read_answer(stream):
    status, headers = read_head(stream)
    return status, headers, json.loads(stream.read(int(headers["content-length"])))


def test_each_event_is_one_transfer_chunk(server, engine):
    with server.connect() as sock, sock.makefile("rb") as stream:
        send_post(sock, STREAM)
        status, headers = read_head(stream)
        assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        chunks = list(read_chunks(stream))
        assert len(chunks) == len(engine.reply_ids) + 2
        assert chunks[-1] == b"data: [DONE]\n\n"
        for chunk in chunks[:-1]:
            assert chunk.startswith(b"data: {")
            assert chunk.endswith(b"}\n\n")
            assert chunk.count(b"\n") == 2
        assert "".join(json.loads(c[6:])["choices"][0]["text"] for c in chunks[:-1]) == REPLY
        send_post(sock, STREAM)  # the connection is still good
        assert read_head(stream)[0] == 200
        assert len(list(read_chunks(stream))) == len(chunks)


def test_plain_and_full_chunks_agree_but_for_their_ends(server):
    """The fast path's bytes are those of the slow one."""
    parts = []
    for extra in ({}, {"stream_options": {"continuous_usage_stats": True}}):
        response = server.post(CHAT, {"messages": [{"role": "user", "content": "fox"}], "stream": True, **extra})
        events = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
        for event in events:
            event.pop("usage", None)
            event.pop("id")
            event.pop("created")
        parts.append(events)
    assert parts[0] == parts[1]


def test_text_that_needs_escaping(serve, tokenizer):
    from helpers.fake_engine import FakeEngineClient

    reply = 'a "quoted" \\ line\nand \u2028 \x7f <b> 😀'
    server = serve(engine=FakeEngineClient(tokenizer, reply=reply))
    response = server.post(COMPLETIONS, {**STREAM, "max_tokens": 99})
    events = [json.loads(event[6:]) for event in response.text.split("\n\n")[:-2]]
    assert "".join(event["choices"][0]["text"] for event in events) == reply


@pytest.mark.parametrize("pause_after", [0, 3], ids=["before the first token", "within the stream"])
@pytest.mark.parametrize("body", [STREAM, {**STREAM, "stream": False}, {**STREAM, "prompt": ["fox", "dog"], "n": 2},
                                  {**STREAM, "stream": False, "prompt": ["fox", "dog"]}], ids=str)
def test_a_client_that_leaves_cancels_its_request(server, engine, body, pause_after):
    engine.pause_after = pause_after
    with server.connect() as sock, sock.makefile("rb") as stream:
        send_post(sock, body)
        num_prompts = len(body["prompt"]) if isinstance(body["prompt"], list) else 1
        engine.wait_for(engine.requests, num_prompts)
        if body["stream"] and pause_after:
            assert read_head(stream)[0] == 200
    engine.wait_for(engine.cancelled, num_prompts)
    assert sorted(engine.cancelled) == sorted(r.request_id for r in engine.requests)
    assert server.metrics()[("pelton_requests_total", "cancelled")] == num_prompts


def test_a_reset_connection_cancels_too(server, engine):
    engine.pause_after = 1
    sock = server.connect()
    send_post(sock, STREAM)
    engine.wait_for(engine.requests)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    sock.close()
    engine.wait_for(engine.cancelled)


def test_the_official_client_cancels_by_closing(server, engine):
    engine.pause_after = 2
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        stream = client.completions.create(**STREAM)
        next(iter(stream))
        stream.close()
        engine.wait_for(engine.cancelled)


def test_others_go_on_when_one_leaves(server, engine):
    engine.pause_after = 2
    with server.connect() as stays, stays.makefile("rb") as stream:
        send_post(stays, STREAM)
        engine.wait_for(engine.requests)
        with server.connect() as leaves:
            send_post(leaves, STREAM)
            engine.wait_for(engine.requests, 2)
        engine.wait_for(engine.cancelled)
        engine.resume()
        assert read_head(stream)[0] == 200
        assert list(read_chunks(stream))[-1] == b"data: [DONE]\n\n"
    assert engine.cancelled == [engine.requests[1].request_id]


def test_a_client_that_leaves_while_sending_its_body_leaves_nothing_behind(server, engine):
    with server.connect() as sock:
        sock.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
    assert server.post(COMPLETIONS, {"prompt": "fox"}).status_code == 200
    assert len(engine.requests) == 1


def test_a_hundred_megabytes_are_refused_before_they_come(server):
    with server.connect() as sock, sock.makefile("rb") as stream:
        sock.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 104857600\r\n\r\n{")
        status, headers, body = read_answer(stream)
    assert (status, headers["connection"], body["error"]["code"]) == (413, "close", "body_too_large")
    assert "33,554,432" in body["error"]["message"]


def test_a_client_that_sends_it_all_first_still_reads_the_answer(serve):
    server = serve(max_body_bytes=1000)
    response = server.post(COMPLETIONS, b"x" * (20 * 2**20))
    assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")
    assert server.http.get("/health").status_code == 200


def test_an_unannounced_large_body_is_refused_while_it_comes(serve):
    server = serve(max_body_bytes=100_000)
    with server.connect() as sock, sock.makefile("rb") as stream:
        sock.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        sock.sendall((b"8000\r\n" + b"x" * 0x8000 + b"\r\n") * 4)  # and no end
        status, headers, body = read_answer(stream)
    assert (status, headers["connection"], body["error"]["code"]) == (413, "close", "body_too_large")


def test_a_body_at_the_limit_is_read(serve):
    body = json.dumps({"prompt": "fox", "user": "x" * 500}).encode()
    assert serve(max_body_bytes=len(body)).post(COMPLETIONS, body).status_code == 200
    assert serve(max_body_bytes=len(body) - 1).post(COMPLETIONS, body).status_code == 413


def test_a_chunked_body_is_read(server):
    body = iter([b'{"prompt": ', b'"fox"}'])
    assert server.http.post(COMPLETIONS, content=body).status_code == 200


def test_expect_100_continue(server):
    body = json.dumps({"prompt": "fox"}).encode()
    with server.connect() as sock, sock.makefile("rb") as stream:
        head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n"
        sock.sendall(head.encode())
        assert read_head(stream)[0] == 100
        sock.sendall(body)
        assert read_answer(stream)[0] == 200
    with server.connect() as sock, sock.makefile("rb") as stream:
        sock.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n"
                     b"Expect: 100-continue\r\n\r\n")
        assert read_answer(stream)[0] == 413, "the client is spared the sending"


def test_api_key(serve):
    server = serve(api_key="secret")
    for method, path in (("GET", "/"), ("GET", "/v1/models"), ("GET", "/metrics"), ("GET", "/version"), ("POST", CHAT),
                         ("POST", COMPLETIONS), ("GET", "/nothing")):
        for key in (None, "", "Bearer wrong", "secret", "Bearer secret2", "Basic secret", "bearer sécret"):
            headers = {} if key is None else {"authorization": key.encode()}
            response = server.http.request(method, path, headers=headers, content=b"{}")
            assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
            assert response.json()["error"]["code"] == "invalid_api_key"
    assert server.http.get("/health").status_code == 200
    assert server.http.get("/metrics", headers={"authorization": "Bearer secret"}).status_code == 200
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="secret", max_retries=0) as client:
        assert client.completions.create(model=MODEL, prompt="fox").choices
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="wrong").models.list()


def test_a_refused_body_does_not_spoil_the_connection(serve):
    server = serve(api_key="secret")
    with server.connect() as sock, sock.makefile("rb") as stream:
        send_post(sock, b"x" * 1_000_000)
        assert read_answer(stream)[0] == 401
        send_post(sock, {"prompt": "fox"}, headers=["Authorization: Bearer secret"])
        assert read_answer(stream)[0] == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("refusal", "status", "code", "outcome"), [
    (("CapacityError", "the queue is full"), 429, "queue_full", "rejected"),
    (("RequestError", "no such thing"), 400, None, "rejected"),
    ((None, "step failed: RuntimeError"), 500, "engine_error", "error"),
])
def test_refusals_of_the_engine(server, engine, stream, refusal, status, code, outcome):
    engine.refusal = refusal
    for prompt in ("fox", ["fox", "dog"]):
        response = server.post(COMPLETIONS, {"prompt": prompt, "stream": stream})
        assert (response.status_code, response.json()["error"]["code"]) == (status, code)
        assert refusal[1] in response.json()["error"]["message"]
        assert response.headers.get("retry-after") == ("1" if status == 429 else None)
    assert server.metrics()[("pelton_requests_total", outcome)] >= 2
    engine.refusal = None
    assert server.post(COMPLETIONS, {"prompt": "fox"}).status_code == 200


def test_a_dead_engine(server, engine):
    assert server.http.get("/health").json() == {"status": "ok"}
    engine.die()
    for response in (server.http.get("/health"), server.post(COMPLETIONS, STREAM),
                     server.post(CHAT, {"messages": [{"role": "user", "content": "fox"}]})):
        assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_dead")
    assert server.http.get("/v1/models").status_code == 200
    samples = server.metrics()
    assert samples[("pelton_engine_up",)] == 0
    assert ("pelton_kv_blocks_free",) not in samples


def test_an_engine_that_dies_within_a_stream(server, engine):
    engine.pause_after = 2
    with server.connect() as sock, sock.makefile("rb") as stream:
        send_post(sock, STREAM)
        assert read_head(stream)[0] == 200
        chunks = read_chunks(stream)
        next(chunks)
        engine.die()
        last = list(chunks)[-1]
    assert json.loads(last[6:])["error"]["code"] == "engine_dead"
    with pytest.raises(openai.APIError, match="ended"), openai.OpenAI(
            base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        client.completions.create(**STREAM)


def test_a_fault_of_ours_is_a_500_that_tells_no_details(server, engine, monkeypatch):
    def fail(request):
        raise LookupError("secret detail")

    monkeypatch.setattr(engine, "generate", fail)
    with server.connect() as sock, sock.makefile("rb") as stream:
        for is_streaming in (False, True, False):  # on one connection, which stays good
            send_post(sock, {**STREAM, "stream": is_streaming})
            status, _, body = read_answer(stream)
            assert (status, body["error"]["message"]) == (500, "internal error: LookupError")


def test_version_and_playground(server):
    from importlib.metadata import version

    assert server.http.get("/version").json() == {"version": version("pelton")}
    page = server.http.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "/v1/chat/completions" in page.text
    assert "http://" not in page.text.replace("http://www.w3.org", "")
    assert "https://" not in page.text
    assert server.http.head("/health").status_code == 200


def test_metrics_count_what_was_served(server, engine, tokenizer):
    server.post(COMPLETIONS, STREAM)
    server.post(COMPLETIONS, {"prompt": "fox", "max_tokens": 2})
    samples = server.metrics()
    num_tokens = len(engine.reply_ids) + 1
    assert samples[("pelton_requests_total", "stop")] == 1
    assert samples[("pelton_requests_total", "length")] == 1
    assert samples[("pelton_time_to_first_token_seconds_count",)] == 2
    assert samples[("pelton_inter_token_seconds_count",)] == num_tokens - 1 + 1
    assert samples[("pelton_request_seconds_count",)] == 2
    assert samples[("pelton_prompt_tokens_total",)] == 2 * len(tokenizer.encode("fox"))
    assert samples[("pelton_kv_blocks_free",)] == 61
    assert samples[("pelton_engine_up",)] == 1


def test_nagle_is_off(server, engine):
    """Small writes of a stream must not wait for acknowledgements of earlier ones."""
    engine.pause_after = 1
    with server.connect() as sock:
        send_post(sock, STREAM)
        engine.wait_for(engine.requests)
        connections = server._server.server_state.connections
        (connection,) = [c for c in connections if c.cycle and not c.cycle.response_complete]
        peer = connection.transport.get_extra_info("socket")
        assert peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        engine.resume()


def test_a_graceful_end_lets_streams_finish(serve, engine):
    server = serve()
    engine.pause_after = 2
    with server.connect() as sock, sock.makefile("rb") as stream:
        send_post(sock, STREAM)
        assert read_head(stream)[0] == 200
        server.stop()
        engine.resume()
        assert list(read_chunks(stream))[-1] == b"data: [DONE]\n\n"


@pytest.mark.parametrize("is_streaming", [True, False])
def test_a_stop_ends_what_outlasts_the_grace_with_an_error(serve, engine, is_streaming):
    server = serve()
    server._server.config.timeout_graceful_shutdown = 0
    engine.pause_after = 2
    with server.connect() as sock, sock.makefile("rb") as stream:
        send_post(sock, {**STREAM, "stream": is_streaming})
        if is_streaming:
            assert read_head(stream)[0] == 200
            chunks = read_chunks(stream)
            next(chunks)
            server.stop()
            body = json.loads(list(chunks)[-1][6:])
        else:
            engine.wait_for(engine.requests)
            server.stop()
            status, _, body = read_answer(stream)
            assert status == 503
    assert body["error"]["code"] == "server_stopping"
    engine.wait_for(engine.cancelled)


def test_a_second_stop_cuts_streams(serve, engine):
    server = serve()
    engine.pause_after = 2
    with server.connect() as sock, sock.makefile("rb") as stream:
        send_post(sock, STREAM)
        assert read_head(stream)[0] == 200
        server.stop()
        server.stop()
        engine.wait_for(engine.cancelled)
