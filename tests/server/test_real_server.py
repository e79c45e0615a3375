"""`pelton serve pelton-tiny`: OpenAI's client against it, its two processes, and how it begins and ends."""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import sys
from pathlib import Path

import openai
import pytest
from helpers.real_server import (
    DEADLINE_S,
    MAX_SEQ_LEN,
    MODEL,
    launch,
    serving,
    until_ready,
    wait_until_ended,
)

from pelton.engine.llm import LLM
from pelton.types import SamplingParams

PROMPT = "class Stack:\n    def "
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("serve") / "log") as server:
        yield server
        server.until_idle()
        server.stop()


@pytest.fixture(scope="module")
def llm():
    with LLM(MODEL, max_seq_len=MAX_SEQ_LEN, num_threads=1, dtype="float32",
             kv_cache_config={"max_blocks": 64}) as llm:
        yield llm


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def offline(llm, prompt=PROMPT, **params):
    return llm.generate([prompt], SamplingParams(**{"temperature": 0.0, **params}))[0]


def test_routes_without_a_prompt(server, client):
    assert server.get("/health").json() == {"status": "ok"}
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", server.get("/version").json()["version"])
    assert [model.id for model in client.models.list()] == [MODEL]
    assert server.metrics()["pelton_engine_up",] == 1


def test_the_server_process_holds_no_torch(server):
    libraries = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "libtorch" not in libraries
    assert "numpy" not in libraries
    assert "libtorch" in Path(f"/proc/{server.engine_pid}/maps").read_text()


def test_token_ids_and_several_prompts(client, llm):
    ids = llm.tokenizer.encode(PROMPT)
    want = offline(llm, max_tokens=12).outputs[0].text
    for prompt in (ids, [ids], [PROMPT]):
        answer = client.completions.create(model=MODEL, prompt=prompt, max_tokens=12, temperature=0)
        assert [choice.text for choice in answer.choices] == [want]
    answer = client.completions.create(model=MODEL, prompt=[ids, [5, 6, 7]], max_tokens=12, temperature=0, n=1)
    other = offline(llm, {"prompt_token_ids": [5, 6, 7]}, max_tokens=12).outputs[0].text
    assert [choice.text for choice in answer.choices] == [want, other]


@pytest.mark.parametrize("route", ["completions", "chat"])
def test_usage_of_a_stream(client, llm, route):
    options = {"model": MODEL, "max_tokens": 9, "temperature": 0, "stream": True,
               "stream_options": {"include_usage": True}}
    if route == "chat":
        messages = [{"role": "user", "content": "import os"}]
        chunks = list(client.chat.completions.create(messages=messages, **options))
        want = llm.chat(messages, SamplingParams(temperature=0.0, max_tokens=9))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    else:
        chunks = list(client.completions.create(prompt=PROMPT, **options))
        want = offline(llm, max_tokens=9)
        text = "".join(chunk.choices[0].text for chunk in chunks[:-1])
    assert text == want.outputs[0].text
    assert chunks[-1].choices == []
    usage = chunks[-1].usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (len(want.prompt_token_ids),
                                                              len(want.outputs[0].token_ids))
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_several_choices_stream_side_by_side(client, llm):
    params = {"n": 3, "seed": 11, "max_tokens": 16, "temperature": 0.8}
    want = [completion.text for completion in offline(llm, **params).outputs]
    for _ in range(2):  # and the seed makes them repeatable
        texts = [""] * 3
        for chunk in client.completions.create(model=MODEL, prompt=PROMPT, stream=True, **params):
            for choice in chunk.choices:
                texts[choice.index] += choice.text
        assert texts == want
    assert len(set(texts)) == 3


def test_a_stop_string_in_a_stream(client, llm, server):
    whole = offline(llm, max_tokens=40).outputs[0].text
    stop = whole[9:12]
    stream = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=40, temperature=0, stop=[stop],
                                       stream=True)
    choices = [chunk.choices[0] for chunk in stream]
    assert "".join(choice.text for choice in choices) == whole[:whole.index(stop)]
    assert [choice.finish_reason for choice in choices if choice.finish_reason] == ["stop"]
    server.until_idle()


def test_logprobs(client, llm):
    want = offline(llm, max_tokens=6, logprobs=3).outputs[0].logprobs
    legacy = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=6, temperature=0, logprobs=3)
    assert legacy.choices[0].logprobs.token_logprobs == pytest.approx([e.logprobs[0] for e in want], abs=1e-3)
    assert [len(top) for top in legacy.choices[0].logprobs.top_logprobs] == [3] * 6
    messages = [{"role": "user", "content": "import os"}]
    chat = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=6, temperature=0, logprobs=True,
                                          top_logprobs=2)
    want = llm.chat(messages, SamplingParams(temperature=0.0, max_tokens=6, logprobs=2)).outputs[0].logprobs
    content = chat.choices[0].logprobs.content
    assert [token.logprob for token in content] == pytest.approx([e.logprobs[0] for e in want], abs=1e-3)
    assert [[top.logprob for top in token.top_logprobs] for token in content] == [
        pytest.approx(e.logprobs[1:], abs=1e-3) for e in want]


@pytest.mark.parametrize(("body", "param"), [
    ({"prompt": ""}, "prompt"), ({"prompt": [1, -1]}, "prompt"), ({"prompt": [[6144]]}, "prompt"),
    ({"prompt": "word " * 700}, "prompt"), ({"prompt": "x", "temperature": -1}, "temperature"),
    ({"prompt": "x", "n": 1000}, "n"), ({"prompt": "x", "seed": 2**63 - 1, "n": 3, "max_tokens": 1}, None),
])
def test_the_engine_outlives_every_odd_request(client, server, body, param):
    if param is None:
        client.completions.create(model=MODEL, **body)
    else:
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(model=MODEL, **body)
        assert caught.value.body["param"] == param
    server.until_idle()
    assert client.completions.create(model=MODEL, prompt="x", max_tokens=1).usage.completion_tokens == 1


def test_twenty_streams_while_others_leave(server, llm):
    """Those who stay get the text they get alone; those who leave give their blocks back."""
    prompts = [f"# example {i}\nimport {'os' if i % 2 else 'sys'}\n" for i in range(20)]
    expected = [out.outputs[0].text for out in llm.generate(prompts, SamplingParams(temperature=0.0, max_tokens=30))]
    before = server.metrics()["pelton_requests_total", "cancelled"]

    async def run():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            async def stay(prompt):
                stream = await client.completions.create(model=MODEL, prompt=prompt, max_tokens=30, temperature=0,
                                                         stream=True)
                return "".join([chunk.choices[0].text async for chunk in stream])

            async def leave(seed):
                stream = await client.completions.create(model=MODEL, prompt=f"leaving {seed}", max_tokens=300,
                                                         stream=True, extra_body={"ignore_eos": True})
                count = 0
                async for _ in stream:
                    count += 1
                    if count > random.Random(seed).randrange(8):
                        break
                await stream.close()

            texts = await asyncio.gather(*map(stay, prompts), *map(leave, range(10)))
            return texts[:len(prompts)]

    assert asyncio.run(run()) == expected
    assert server.until_idle()["pelton_requests_total", "cancelled"] == before + 10


# Beginnings and ends. Each test has servers of its own.


def test_sigterm_lets_short_requests_end_and_leaves_nothing(tmp_path):
    with serving(tmp_path / "log") as server, openai.OpenAI(
            base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        engine_pid = server.engine_pid
        stream = iter(client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=60, stream=True,
                                                extra_body={"ignore_eos": True}))
        next(stream)
        server.process.send_signal(signal.SIGTERM)
        assert [chunk.choices[0].finish_reason for chunk in stream][-1] == "length"
        assert server.process.wait(DEADLINE_S) == 0
        wait_until_ended(engine_pid)
        assert not re.search("WARNING|ERROR|Traceback", server.log.read_text())


def test_ctrl_c_reaches_the_whole_group_and_ends_it_without_noise(tmp_path):
    with serving(tmp_path / "log", start_new_session=True) as server:
        engine_pid = server.engine_pid
        os.killpg(server.process.pid, signal.SIGINT)
        assert server.process.wait(DEADLINE_S) == 0
        wait_until_ended(engine_pid)
        assert "Traceback" not in server.log.read_text()


def test_a_killed_server_takes_its_engine_with_it(tmp_path):
    with serving(tmp_path / "log") as server:
        engine_pid = server.engine_pid
        server.process.kill()
        wait_until_ended(engine_pid)


def test_two_servers_that_start_at_once_share_one_build(tmp_path):
    env = {**os.environ, "PELTON_CACHE": str(tmp_path / "cache")}
    logs = [tmp_path / "log0", tmp_path / "log1"]
    processes = [launch(log, env=env) for log in logs]
    try:
        servers = [until_ready(*pair) for pair in zip(processes, logs, strict=True)]
        assert servers[0].url != servers[1].url
        for server in servers:
            with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
                assert client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=2).usage.completion_tokens == 2
        assert "".join(log.read_text() for log in logs).count("building the engine of") == 1
        assert len([path for path in (tmp_path / "cache" / "engines").iterdir() if path.is_dir()]) == 1
        for server in servers:
            server.stop()
    finally:
        for process in processes:
            process.kill()
            process.wait(DEADLINE_S)
            process.stdout.close()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_while_building(tmp_path, signum):
    engines, log = tmp_path / "cache" / "engines", tmp_path / "log"
    env = {**os.environ, "PELTON_CACHE": str(tmp_path / "cache")}
    process = launch(log, env=env, start_new_session=True)
    try:
        while not engines.exists():
            assert process.poll() is None
        os.killpg(process.pid, signum)
        assert process.wait(DEADLINE_S) == (130 if signum == signal.SIGINT else -signum)
        assert re.fullmatch("pelton: building the engine of .*\n|", log.read_text())
        if signum == signal.SIGINT:
            assert not [path for path in engines.iterdir() if path.is_dir()]
    finally:
        process.kill()
        process.wait(DEADLINE_S)
        process.stdout.close()
