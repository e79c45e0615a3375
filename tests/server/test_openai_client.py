"""The official client against a real server on a real socket, with a scripted engine behind it."""

import asyncio

import openai
import pytest
from helpers.fake_engine import REPLY, FakeEngineClient
from helpers.live_server import MODEL
from helpers.tokenizers import write_tokenizer

from pelton.tokenizer.tokenizer import Tokenizer

USER = [{"role": "user", "content": "fox"}]


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_models(client, tokenizer_dir):
    (model,) = client.models.list().data
    assert (model.id, model.object, model.owned_by) == (MODEL, "model", "pelton")
    assert model.root == str(tokenizer_dir)
    assert model.max_model_len == 256
    assert client.models.retrieve(MODEL) == model
    with pytest.raises(openai.NotFoundError, match=MODEL):
        client.models.retrieve("other/model")


def test_chat(client, engine, tokenizer):
    answer = client.chat.completions.create(model=MODEL, messages=USER)
    (choice,) = answer.choices
    assert (answer.object, answer.model) == ("chat.completion", MODEL)
    assert (choice.message.role, choice.message.content) == ("assistant", REPLY)
    assert (choice.finish_reason, choice.logprobs) == ("stop", None)
    prompt = tokenizer.encode_chat(USER)
    assert engine.requests[0].input_token_ids == prompt
    num_tokens = len(engine.reply_ids) + 1
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(prompt), num_tokens)
    assert answer.usage.total_tokens == len(prompt) + num_tokens
    assert engine.requests[0].sampling_params.max_tokens == 256 - len(prompt)


def test_chat_stream_has_one_chunk_per_token(client, engine):
    with client.chat.completions.create(model=MODEL, messages=USER, stream=True) as stream:
        first, *chunks = list(stream)
    assert (first.choices[0].delta.role, first.choices[0].delta.content) == ("assistant", "")
    assert len(chunks) == len(engine.reply_ids) + 1
    assert "".join(c.choices[0].delta.content for c in chunks) == REPLY
    assert [c.choices[0].finish_reason for c in chunks] == [None] * len(engine.reply_ids) + ["stop"]
    assert {(c.id, c.object, c.model, c.created, c.usage) for c in [first, *chunks]} == {
        (first.id, "chat.completion.chunk", MODEL, first.created, None)}


def test_stream_with_usage(client, engine, tokenizer):
    engine.num_cached_tokens = 3
    with client.chat.completions.create(model=MODEL, messages=USER, stream=True, n=2,
                                        stream_options={"include_usage": True}) as stream:
        *chunks, last = list(stream)
    assert all(chunk.usage is None for chunk in chunks)
    assert last.choices == []
    prompt, output = len(tokenizer.encode_chat(USER)), 2 * (len(engine.reply_ids) + 1)
    assert (last.usage.prompt_tokens, last.usage.completion_tokens, last.usage.total_tokens) == (
        prompt, output, prompt + output)
    assert last.usage.prompt_tokens_details.cached_tokens == 3


def test_stream_with_usage_on_every_chunk(client, engine):
    with client.completions.create(model=MODEL, prompt="fox", max_tokens=3, stream=True,
                                   stream_options={"include_usage": True},
                                   extra_body={"stream_options": {"continuous_usage_stats": True}}) as stream:
        assert [chunk.usage.completion_tokens for chunk in stream if chunk.choices] == [1, 2, 3]


def test_several_completions(client):
    answer = client.chat.completions.create(model=MODEL, messages=USER, n=3)
    assert [(c.index, c.message.content) for c in answer.choices] == [(i, REPLY) for i in range(3)]
    with client.chat.completions.create(model=MODEL, messages=USER, n=3, stream=True) as stream:
        texts = ["", "", ""]
        for chunk in stream:
            texts[chunk.choices[0].index] += chunk.choices[0].delta.content
    assert texts == [REPLY] * 3


def test_sampling_fields_reach_the_engine(client, engine):
    client.chat.completions.create(
        model=MODEL, messages=USER, temperature=0.5, top_p=0.25, presence_penalty=1, frequency_penalty=-1, seed=7,
        stop=["xyz", "zzz"], logit_bias={"5": -100}, max_completion_tokens=9, user="me", store=True,
        metadata={"a": "b"}, service_tier="auto", tools=[], tool_choice="auto", response_format={"type": "text"},
        extra_body={"top_k": 3, "min_p": 0.1, "repetition_penalty": 1.5, "ignore_eos": True, "min_tokens": 2,
                    "stop_token_ids": [8], "bad_words": ["dog"], "skip_special_tokens": False, "priority": -2,
                    "include_stop_str_in_output": True, "prompt_logprobs": 1, "cache_salt": "me"})
    request = engine.requests[0]
    params = request.sampling_params
    assert (request.priority, request.cache_salt) == (-2, "me")
    assert (params.temperature, params.top_p, params.presence_penalty, params.frequency_penalty, params.seed) == (
        0.5, 0.25, 1.0, -1.0, 7)
    assert (params.stop, params.logit_bias, params.max_tokens) == (("xyz", "zzz"), {5: -100.0}, 9)
    assert (params.top_k, params.min_p, params.repetition_penalty, params.ignore_eos, params.min_tokens) == (
        3, 0.1, 1.5, True, 2)
    assert (params.stop_token_ids, params.bad_words, params.skip_special_tokens) == ((8,), ("dog",), False)
    assert (params.include_stop_str_in_output, params.prompt_logprobs) == (True, 1)
    assert len(params.bad_words_token_ids) == 2


def test_stop_string_ends_a_completion_and_tells_the_engine(client, engine, tokenizer):
    answer = client.chat.completions.create(model=MODEL, messages=USER, stop="ox j")
    (choice,) = answer.choices
    assert (choice.message.content, choice.finish_reason, choice.stop_reason) == ("The quick brown f", "stop", "ox j")
    ((_, index, num_tokens),) = engine.finishes
    assert index == 0
    assert answer.usage.completion_tokens == num_tokens
    assert "ox j" in tokenizer.decode(engine.reply_ids[:num_tokens])
    assert "ox j" not in tokenizer.decode(engine.reply_ids[:num_tokens - 1])
    assert engine.cancelled == []


def test_stop_string_in_a_stream_is_never_sent(client):
    with client.chat.completions.create(model=MODEL, messages=USER, stop=["ox j", "zzz"], stream=True) as stream:
        chunks = list(stream)
    assert "".join(c.choices[0].delta.content for c in chunks) == "The quick brown f"
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_stop_token_and_length(client, engine):
    def run(**body):
        return client.completions.create(model=MODEL, prompt="fox", extra_body=body).choices[0]

    stopped = run(stop_token_ids=[engine.reply_ids[4]])
    assert (stopped.finish_reason, stopped.stop_reason) == ("stop", engine.reply_ids[4])
    assert run(max_tokens=4).finish_reason == "length"
    assert run(max_tokens=4).text == stopped.text
    assert run(ignore_eos=True).finish_reason == "length"
    assert engine.requests[-1].sampling_params.max_tokens == 16


def test_chat_logprobs(client, engine, tokenizer):
    answer = client.chat.completions.create(model=MODEL, messages=USER, logprobs=True, top_logprobs=2)
    content = answer.choices[0].logprobs.content
    assert len(content) == len(engine.reply_ids) + 1
    assert content[0].token == tokenizer.decode(engine.reply_ids[:1])
    assert content[0].logprob == -0.5
    assert [t.logprob for t in content[0].top_logprobs] == [-1.0, -2.0]
    assert b"".join(bytes(t.bytes) for t in content[:-1]).decode() == REPLY
    assert any(t.token.startswith("bytes:\\x") for t in content), "half characters show their bytes"
    with client.chat.completions.create(model=MODEL, messages=USER, logprobs=True, top_logprobs=2,
                                        stream=True) as stream:
        streamed = [t for chunk in stream if chunk.choices[0].logprobs for t in chunk.choices[0].logprobs.content]
    assert streamed == content


def test_prompt_logprobs(client, tokenizer):
    answer = client.chat.completions.create(model=MODEL, messages=USER, extra_body={"prompt_logprobs": 1})
    ids = tokenizer.encode_chat(USER)
    assert answer.prompt_logprobs[0] is None
    assert len(answer.prompt_logprobs) == len(ids)
    row = answer.prompt_logprobs[1]
    assert row[str(ids[1])] == {"logprob": -0.5, "rank": 1, "decoded_token": "<|user|>"}
    assert row["10"]["logprob"] == -1.0


@pytest.mark.parametrize("stream", [False, True])
def test_several_prompts_in_every_form(client, engine, tokenizer, stream):
    ids = tokenizer.encode("fox")
    for prompt in ("fox", ["fox", "fox"], ids, [ids, ids]):
        engine.requests.clear()
        answer = client.completions.create(model=MODEL, prompt=prompt, max_tokens=64, n=2, stream=stream,
                                           **({"stream_options": {"include_usage": True}} if stream else {}))
        num_prompts = 1 if prompt in ("fox", ids) else 2
        texts = [""] * (2 * num_prompts)
        for part in answer if stream else [answer]:
            for choice in part.choices:
                texts[choice.index] += choice.text
            usage = part.usage
        assert texts == [REPLY] * (2 * num_prompts)
        assert [r.input_token_ids for r in engine.requests] == [ids] * num_prompts
        assert usage.prompt_tokens == len(ids) * num_prompts
        assert usage.completion_tokens == 2 * num_prompts * (len(engine.reply_ids) + 1)


def test_special_tokens_of_a_prompt(client, engine):
    client.completions.create(model=MODEL, prompt="fox", extra_body={"add_special_tokens": False})
    client.completions.create(model=MODEL, prompt="fox")
    assert engine.requests[1].input_token_ids == [0, *engine.requests[0].input_token_ids]


def test_each_prompt_has_its_own_room(client, engine):
    client.completions.create(model=MODEL, prompt=[[7] * 200, [7]], max_tokens=None)
    assert [r.sampling_params.max_tokens for r in engine.requests] == [16, 16]
    client.completions.create(model=MODEL, prompt=[[7] * 200, [7]], max_tokens=56)
    with pytest.raises(openai.BadRequestError, match="at most 56"):
        client.completions.create(model=MODEL, prompt=[[7] * 200, [7]], max_tokens=57)


def test_completion_logprobs_and_echo(client, engine, tokenizer):
    answer = client.completions.create(model=MODEL, prompt="the fox", max_tokens=64, logprobs=2, echo=True)
    (choice,) = answer.choices
    assert choice.text == "the fox" + REPLY
    prompt = tokenizer.encode("the fox")
    logprobs = choice.logprobs
    assert len(logprobs.tokens) == len(prompt) + len(engine.reply_ids) + 1
    assert logprobs.token_logprobs[0] is None
    assert logprobs.top_logprobs[0] is None
    assert logprobs.token_logprobs[1] == -0.5
    assert len(logprobs.top_logprobs[1]) == 3
    for token, offset in zip(logprobs.tokens[1:-1], logprobs.text_offset[1:-1], strict=True):
        if not token.startswith("bytes:"):
            assert choice.text[offset:].startswith(token)
    with client.completions.create(model=MODEL, prompt="the fox", max_tokens=64, logprobs=2, echo=True,
                                   stream=True) as stream:
        chunks = [chunk.choices[0] for chunk in stream]
    assert "".join(c.text for c in chunks) == choice.text
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [value for c in chunks for value in getattr(c.logprobs, name)] == getattr(logprobs, name)


def test_offsets_without_echo_count_from_the_output(client):
    (choice,) = client.completions.create(model=MODEL, prompt="the fox", max_tokens=3, logprobs=0).choices
    assert choice.logprobs.text_offset[0] == 0
    assert choice.text[choice.logprobs.text_offset[2]:] == choice.logprobs.tokens[2]
    assert [list(top) for top in choice.logprobs.top_logprobs] == [[token] for token in choice.logprobs.tokens]


def test_echo_alone_scores_a_prompt(client, tokenizer):
    answer = client.completions.create(model=MODEL, prompt="the fox", max_tokens=0, logprobs=1, echo=True)
    assert answer.choices[0].text == "the fox"
    assert len(answer.choices[0].logprobs.tokens) == len(tokenizer.encode("the fox"))
    assert answer.usage.completion_tokens == 0


def test_echo_of_token_ids_shows_their_text(client, tokenizer):
    ids = tokenizer.encode("the fox")
    answer = client.completions.create(model=MODEL, prompt=ids, max_tokens=1, echo=True)
    assert answer.choices[0].text.startswith("the fox")


def test_outputs_with_several_tokens_make_one_chunk(serve, tokenizer):
    engine = FakeEngineClient(tokenizer, tokens_per_output=4)
    server = serve(engine=engine)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        with client.completions.create(model=MODEL, prompt="fox", max_tokens=99, stream=True) as stream:
            chunks = list(stream)
        assert len(chunks) == -(-(len(engine.reply_ids) + 1) // 4)
        assert "".join(c.choices[0].text for c in chunks) == REPLY
        answer = client.completions.create(model=MODEL, prompt="fox", max_tokens=99, stop="quick")
        assert answer.choices[0].text == "The "


def test_template_variables(serve, tmp_path, engine):
    template = "{{ messages[0].content }} {{ enable_thinking }} {{ reasoning_effort }}"
    tokenizer = Tokenizer.from_dir(write_tokenizer(tmp_path, template=template))
    server = serve(tokenizer=tokenizer)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        client.chat.completions.create(model=MODEL, messages=USER, reasoning_effort="low",
                                       extra_body={"chat_template_kwargs": {"enable_thinking": False}})
    assert tokenizer.decode(engine.requests[0].input_token_ids) == "fox False low"


async def _ask(url):
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:

        async def one(i):
            stream = await client.completions.create(model=MODEL, prompt=f"fox {i}", max_tokens=64, stream=True)
            return "".join([chunk.choices[0].text async for chunk in stream])

        return await asyncio.gather(*(one(i) for i in range(32)))


def test_many_streams_at_once(server, engine):
    assert asyncio.run(_ask(server.url)) == [REPLY] * 32
    assert len({r.request_id for r in engine.requests}) == 32
