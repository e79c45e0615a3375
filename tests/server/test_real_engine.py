"""`pelton serve pelton-tiny` as users start it, with its engine process behind it."""

import asyncio
import os
import signal
import subprocess
import sys

import openai
import pytest
from helpers.real_server import MAX_SEQ_LEN, MODEL, serving

from pelton.engine.llm import LLM
from pelton.types import SamplingParams

PROMPT = "def fibonacci(n):\n    "


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("serve") / "log") as server:
        yield server
        server.stop()


@pytest.fixture(scope="module")
def llm():
    with LLM(MODEL, max_seq_len=MAX_SEQ_LEN, num_threads=1, dtype="float32") as llm:
        yield llm


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def greedy(llm, prompt, **params):
    return llm.generate([prompt], SamplingParams(temperature=0, **params))[0]


@pytest.mark.parametrize("stream", [False, True])
def test_completion_is_what_the_engine_makes_offline(client, llm, stream):
    expected = greedy(llm, PROMPT, max_tokens=48)
    answer = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=48, temperature=0, stream=stream)
    chunks = list(answer) if stream else [answer]
    assert "".join(c.text for chunk in chunks for c in chunk.choices) == expected.outputs[0].text
    assert chunks[-1].choices[0].finish_reason == expected.outputs[0].finish_reason
    if stream:
        assert len(chunks) == len(expected.outputs[0].token_ids)
    else:
        assert answer.usage.completion_tokens == len(expected.outputs[0].token_ids)
        assert answer.usage.prompt_tokens == len(expected.prompt_token_ids)


def test_chat(client, llm):
    messages = [{"role": "user", "content": "import os"}]
    answer = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=16, temperature=0, logprobs=True)
    expected = llm.chat(messages, SamplingParams(max_tokens=16, temperature=0, logprobs=0))
    assert answer.choices[0].message.content == expected.outputs[0].text
    assert answer.usage.prompt_tokens == len(expected.prompt_token_ids)
    logprobs = [entry.logprobs[0] for entry in expected.outputs[0].logprobs]
    assert [t.logprob for t in answer.choices[0].logprobs.content] == pytest.approx(logprobs, abs=1e-3)


def test_a_seed_repeats_and_stop_strings_end(client, server):
    def run(**body):
        return client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=32, seed=7, n=2, **body)

    texts = [choice.text for choice in run().choices]
    assert [choice.text for choice in run().choices] == texts
    assert texts[0] != texts[1]
    stop = texts[0][5:8]
    stopped = run(stop=stop)
    assert stopped.choices[0].text == texts[0][:texts[0].index(stop)]
    assert stopped.choices[0].finish_reason == "stop"
    assert server.until_idle()[("pelton_kv_blocks_used",)] == 0


def test_scores_of_a_prompt(client, llm):
    expected = llm.generate([PROMPT], SamplingParams(max_tokens=1, prompt_logprobs=1))[0].prompt_logprobs
    answer = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=0, echo=True, logprobs=1)
    assert answer.choices[0].text == PROMPT
    got = answer.choices[0].logprobs.token_logprobs
    assert got[0] is None
    assert got[1:] == pytest.approx([entry.logprobs[0] for entry in expected[1:]], abs=1e-3)


def test_cached_prefixes_are_told(client, llm):
    ids = llm.tokenizer.encode(PROMPT * 20)
    for expected in (0, (len(ids) - 1) // 64 * 64):
        usage = client.completions.create(model=MODEL, prompt=ids, max_tokens=1,
                                          extra_body={"cache_salt": "only here"}).usage
        assert usage.prompt_tokens_details.cached_tokens == expected


def test_a_client_that_leaves_frees_its_blocks(client, server):
    before = server.metrics()[("pelton_requests_total", "cancelled")]
    stream = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=400, stream=True,
                                       extra_body={"ignore_eos": True})
    next(iter(stream))
    stream.close()
    samples = server.until_idle()
    assert samples[("pelton_kv_blocks_used",)] == 0
    assert samples[("pelton_requests_total", "cancelled")] == before + 1


def test_many_different_requests_at_once(server, llm):
    prompts = [f"{PROMPT}# {i}\n" for i in range(24)]
    expected = [out.outputs[0].text for out in llm.generate(prompts, SamplingParams(temperature=0, max_tokens=24))]

    async def run():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            async def one(prompt):
                stream = await client.completions.create(model=MODEL, prompt=prompt, max_tokens=24, temperature=0,
                                                         stream=True)
                return "".join([chunk.choices[0].text async for chunk in stream])

            return await asyncio.gather(*map(one, prompts))

    assert asyncio.run(run()) == expected


def test_what_the_engine_refuses(client):
    with pytest.raises(openai.BadRequestError, match=str(MAX_SEQ_LEN)):
        client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=MAX_SEQ_LEN)
    with pytest.raises(openai.BadRequestError, match="prompt is empty"):
        client.completions.create(model=MODEL, prompt="")


def test_two_servers_do_not_collide(server):
    """A second one on the same port is told so; the first goes on."""
    port = server.url.rpartition(":")[2]
    done = subprocess.run([sys.executable, "-m", "pelton.cli", "serve", MODEL, "--port", port, "--max-seq-len",
                           str(MAX_SEQ_LEN), "--dtype", "float32"], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 1
    assert "--port 0" in done.stderr.splitlines()[-1]
    assert server.get("/health").status_code == 200


@pytest.mark.skipif(sys.platform != "linux", reason="finds the child process in /proc")
def test_an_engine_process_that_is_killed(tmp_path):
    with serving(tmp_path / "log") as server, openai.OpenAI(
            base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        stream = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=400, stream=True,
                                           extra_body={"ignore_eos": True})
        next(iter(stream))
        os.kill(server.engine_pid, signal.SIGKILL)
        with pytest.raises(openai.APIError, match="engine process has ended"):
            list(stream)
        assert server.get("/health").status_code == 503
        with pytest.raises(openai.InternalServerError, match="engine process has ended"):
            client.completions.create(model=MODEL, prompt=PROMPT)
        assert server.metrics()[("pelton_engine_up",)] == 0
        server.stop()
