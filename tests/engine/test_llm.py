"""`LLM` from text to text, on the shipped model and, against transformers, on a small random one."""

from __future__ import annotations

import asyncio
import gc
import itertools
import subprocess
import sys
import threading
import weakref
from contextlib import aclosing

import pytest
import torch
from helpers.checkpoints import load_reference, make_checkpoint

from pelton import LLM, KvCacheConfig, Request, SamplingParams
from pelton.errors import CheckpointError, ConfigError, EngineDeadError, EngineError, RequestError

PROMPT = "def fibonacci(n):\n    "
GREEDY = SamplingParams(temperature=0.0, max_tokens=24)


@pytest.fixture(scope="module")
def llm():
    with LLM("pelton-tiny", dtype="float32", num_threads=1, max_seq_len=512,
             kv_cache_config=KvCacheConfig(max_blocks=64)) as llm:
        yield llm


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint("LlamaForCausalLM", tmp_path_factory.mktemp("llm"), dtype="float32", seed=11)


@pytest.fixture(scope="module")
def small(checkpoint):
    with LLM(checkpoint, num_threads=1, tokens_per_block=16, kv_cache_config={"max_blocks": 64}) as llm:
        yield llm


@pytest.fixture(scope="module")
def reference(checkpoint):
    model = load_reference(checkpoint)

    def log_probs(token_ids):
        """[len, V]: row i scores the token after position i."""
        with torch.inference_mode():
            return torch.log_softmax(model(torch.tensor([token_ids])).logits[0].double(), -1)

    return log_probs


def texts(results):
    return [completion.text for result in results for completion in result.outputs]


# Prompts and results.


def test_strings_ids_and_dicts_are_the_same_prompt(llm):
    ids = llm.tokenizer.encode(PROMPT)
    forms = [PROMPT, ids, tuple(ids), {"prompt": PROMPT}, {"prompt_token_ids": ids}, torch.tensor(ids),
             {"prompt": PROMPT, "prompt_token_ids": ids}]
    results = llm.generate(forms, GREEDY)
    assert len(set(texts(results))) == 1
    assert [result.prompt_token_ids for result in results] == [ids] * len(forms)
    assert [result.prompt for result in results] == [PROMPT, None, None, PROMPT, None, None, PROMPT]
    for alone in (PROMPT, ids, {"prompt": PROMPT}):
        assert texts(llm.generate(alone, GREEDY)) == texts(results[:1])


def test_the_fields_of_a_result(llm):
    (result,) = llm.generate(PROMPT, GREEDY)
    (completion,) = result.outputs
    assert result.finished
    assert completion.index == 0
    assert completion.finish_reason == "length"
    assert completion.logprobs is completion.cumulative_logprob is result.prompt_logprobs is None
    assert len(completion.token_ids) == 24
    whole = llm.tokenizer.decode(result.prompt_token_ids + completion.token_ids)
    assert whole == PROMPT + completion.text
    assert texts(llm.generate(PROMPT)) != [""]
    assert len(llm.generate(PROMPT)[0].outputs[0].token_ids) <= 16
    assert llm.generate([]) == []


def test_results_keep_the_prompts_order_and_their_own_parameters(llm):
    prompts = [f"# {i}\nimport " for i in range(40)]
    params = [SamplingParams(temperature=0.0, max_tokens=1 + i % 7) for i in range(40)]
    results = llm.generate(prompts, params)
    assert [result.prompt for result in results] == prompts
    assert [len(result.outputs[0].token_ids) for result in results] == [1 + i % 7 for i in range(40)]
    for i in (0, 20, 39):
        assert texts(llm.generate(prompts[i], params[i])) == texts([results[i]])


@pytest.mark.parametrize(("prompt", "match"), [
    ("", "prompt is empty"), ([], "prompt is empty"), ({}, r"keys \[\]"), ({"prompt": None}, "keys"),
    ({"text": "x"}, r"keys \['text'\]"), ({"prompt": 5}, "prompt must be a string, got int"), (5, "must be a string"),
    (None, "must be a string"), (b"bytes", "must be a string"), ([1.5], "must be a string"), (["a"], "must be"),
    ({"prompt_token_ids": "abc"}, "must be a string"), ([-1], "got -1"), ([2**70], "serialize"), ([6144], "got 6144"),
    ("word " * 600, r"at most 511 fit"), ("\ud800", "surrogates"), (b"", "must be"),
])
def test_an_impossible_prompt_is_named_and_disturbs_no_other(llm, prompt, match):
    before = llm._executor.stats()
    with pytest.raises(RequestError, match=rf"prompts\[1\]: .*{match}"):
        llm.generate([PROMPT, prompt, PROMPT], GREEDY)
    after = llm._executor.stats()
    assert (after.num_running, after.num_waiting) == (0, 0)
    assert after.num_prompt_tokens == before.num_prompt_tokens, "nothing was run"


@pytest.mark.parametrize(("params", "match"), [
    ([GREEDY], "1 given for 2"), ([GREEDY] * 3, "3 given for 2"), ({"temperature": 0}, "got dict"), (5, "got int"),
    ([GREEDY, None], "got list")])
def test_wrong_sampling_params(llm, params, match):
    with pytest.raises(RequestError, match=match):
        llm.generate([PROMPT, PROMPT], params)


@pytest.mark.parametrize(("options", "error", "match"), [
    ({"bogus": 1}, ConfigError, "unknown option 'bogus'; known are"),
    ({"max_batch_size": "8"}, ConfigError, "max_batch_size: Expected `int"),
    ({"kv_cache_config": {"bogus": 1}}, ConfigError, "bogus"),
    ({"dtype": "int3"}, ConfigError, "dtype: .*it can be float32"),
    ({"max_seq_len": 10**6}, ConfigError, "max_seq_len must be at most"),
    ({"model": "./nowhere"}, CheckpointError, "does not exist"),
])
def test_what_cannot_be_loaded(options, error, match):
    with pytest.raises(error, match=match):
        LLM(**{"model": "pelton-tiny", **options})


def test_an_engine_directory_is_taken_as_it_is(llm):
    with LLM(llm.engine_dir, kv_cache_config=KvCacheConfig(max_blocks=32)) as again:
        assert texts(again.generate(PROMPT, GREEDY)) == texts(llm.generate(PROMPT, GREEDY))
    with pytest.raises(EngineError, match="tokens_per_block was fixed"):
        LLM(llm.engine_dir, tokens_per_block=16)


# Sampling.


def test_n_completions_differ_and_repeat_with_the_seed(llm):
    params = SamplingParams(n=3, seed=5, max_tokens=20)
    first, second = llm.generate([PROMPT, PROMPT], params)
    assert texts([first]) == texts([second])
    assert len(set(texts([first]))) == 3
    alone = [texts(llm.generate(PROMPT, SamplingParams(seed=5 + i, max_tokens=20)))[0] for i in range(3)]
    assert alone == texts([first])


@pytest.mark.parametrize("seed", [2**63 - 1, -(2**63)])
def test_seeds_at_the_edge_harm_nobody(llm, seed):
    params = SamplingParams(n=3, seed=seed, max_tokens=5)
    assert texts(llm.generate(PROMPT, params)) == texts(llm.generate(PROMPT, params))


def test_a_seed_gives_the_same_text_alone_in_a_batch_and_after_preemption(checkpoint, small):
    prompts = [list(range(10 + i, 40 + i)) for i in range(8)]
    params = [SamplingParams(seed=i, temperature=0.9, top_p=0.95, max_tokens=60, ignore_eos=True) for i in range(8)]
    alone = [small.generate([prompt], p)[0].outputs[0].token_ids for prompt, p in zip(prompts, params, strict=True)]
    assert [r.outputs[0].token_ids for r in small.generate(prompts, params)] == alone
    with LLM(checkpoint, num_threads=1, tokens_per_block=16, max_seq_len=256,
             kv_cache_config=KvCacheConfig(max_blocks=16)) as tight:
        assert [r.outputs[0].token_ids for r in tight.generate(prompts, params)] == alone
        assert tight._executor.stats().num_preemptions > 0


def test_stop_strings_across_tokens(llm):
    (whole,) = llm.generate(PROMPT, SamplingParams(temperature=0.0, max_tokens=40))
    text, pieces = whole.outputs[0].text, [llm.tokenizer.decode([t]) for t in whole.outputs[0].token_ids]
    first = pieces[0] + pieces[1]
    stop = text[len(first) - 1:len(first) + 1]  # the end of one token and the start of the next
    assert pieces[2].startswith(stop[1])
    for include in (False, True):
        params = SamplingParams(temperature=0.0, max_tokens=40, stop=stop, include_stop_str_in_output=include)
        (completion,) = llm.generate(PROMPT, params)[0].outputs
        at = text.index(stop)
        assert completion.text == text[:at + len(stop) * include]
        assert (completion.finish_reason, completion.stop_reason) == ("stop", stop)
        assert len(completion.token_ids) <= 3
    assert llm._executor.stats().num_running == 0


def test_a_stop_string_ends_only_its_own_completion(llm):
    params = SamplingParams(n=3, seed=2, max_tokens=30, ignore_eos=True)
    whole = llm.generate(PROMPT, params)[0].outputs
    stop = next(word for word in whole[1].text.split() if word not in whole[0].text)
    got = llm.generate(PROMPT, SamplingParams(n=3, seed=2, max_tokens=30, ignore_eos=True, stop=[stop]))[0].outputs
    assert got[0].text == whole[0].text
    assert got[1].text == whole[1].text[:whole[1].text.index(stop)]
    assert (got[0].finish_reason, got[1].finish_reason) == ("length", "stop")


def test_stop_token_ids_min_tokens_and_eos(llm):
    (whole,) = llm.generate(PROMPT, GREEDY)
    ids = whole.outputs[0].token_ids
    stop = ids[3]
    at = ids.index(stop)
    (completion,) = llm.generate(PROMPT, SamplingParams(temperature=0.0, max_tokens=24,
                                                        stop_token_ids=[stop]))[0].outputs
    assert completion.token_ids == ids[:at + 1]
    assert (completion.finish_reason, completion.stop_reason) == ("stop", stop)
    assert completion.text == llm.tokenizer.decode(whole.prompt_token_ids + ids[:at])[len(PROMPT):]
    late = llm.generate(PROMPT, SamplingParams(temperature=0.0, max_tokens=24, stop_token_ids=[stop], min_tokens=12))
    assert stop not in late[0].outputs[0].token_ids[:12]
    eos = llm.tokenizer.eos_ids[0]
    forced = SamplingParams(temperature=0.0, max_tokens=24, logit_bias={eos: 100.0})
    (ended,) = llm.generate(PROMPT, forced)[0].outputs
    assert (ended.text, ended.token_ids, ended.finish_reason, ended.stop_reason) == ("", [eos], "stop", None)
    (going_on,) = llm.generate(PROMPT, SamplingParams(temperature=0.0, max_tokens=4, logit_bias={eos: 100.0},
                                                      ignore_eos=True))[0].outputs
    assert going_on.token_ids == [eos] * 4


def test_bad_words_and_logit_bias(llm):
    (whole,) = llm.generate(PROMPT, GREEDY)
    word = max(whole.outputs[0].text.split(), key=len)
    (clean,) = llm.generate(PROMPT, SamplingParams(temperature=0.0, max_tokens=24, bad_words=[word]))
    assert word in whole.outputs[0].text
    assert word not in clean.outputs[0].text
    first = whole.outputs[0].token_ids[0]
    (biased,) = llm.generate(PROMPT, SamplingParams(temperature=0.0, max_tokens=3, logit_bias={first: -100.0}))
    assert biased.outputs[0].token_ids[0] != first


# Log-probabilities, held against transformers.


def test_logprobs(small, reference):
    prompt = list(range(20, 60))
    (result,) = small.generate([prompt], SamplingParams(seed=3, max_tokens=12, logprobs=4, ignore_eos=True))
    completion = result.outputs[0]
    scores = reference(prompt + completion.token_ids)
    for i, (token, entry) in enumerate(zip(completion.token_ids, completion.logprobs, strict=True)):
        row = scores[len(prompt) - 1 + i]
        assert entry.token_ids[0] == token
        assert entry.logprobs == pytest.approx(row[entry.token_ids].tolist(), abs=1e-4)
        assert entry.token_ids[1:] == row.topk(4).indices.tolist()
        assert entry.rank == int((row > row[token]).sum()) + 1
    assert completion.cumulative_logprob == pytest.approx(sum(entry.logprobs[0] for entry in completion.logprobs))


@pytest.mark.parametrize("max_num_tokens", [None, 7], ids=["whole", "chunked"])
def test_prompt_logprobs(checkpoint, reference, max_num_tokens):
    prompt = list(range(30, 75))
    with LLM(checkpoint, num_threads=1, tokens_per_block=16, max_num_tokens=max_num_tokens,
             kv_cache_config=KvCacheConfig(max_blocks=32)) as llm:
        params = SamplingParams(temperature=0.0, max_tokens=2, prompt_logprobs=2)
        for _ in range(2):  # the second finds its prefix in the cache, and must be scored all the same
            (result,) = llm.generate([prompt], params)
            assert result.prompt_logprobs[0] is None
            assert len(result.prompt_logprobs) == len(prompt)
            scores = reference(prompt)
            for i, entry in enumerate(result.prompt_logprobs[1:]):
                assert entry.token_ids[0] == prompt[i + 1]
                assert entry.logprobs == pytest.approx(scores[i][entry.token_ids].tolist(), abs=1e-4)
                assert entry.token_ids[1:] == scores[i].topk(2).indices.tolist()


def test_logprobs_of_a_stopped_completion_fit_its_tokens(llm):
    params = {"temperature": 0.0, "max_tokens": 20, "logprobs": 0}
    (whole,) = llm.generate(PROMPT, SamplingParams(**params))
    stop = whole.outputs[0].text[10:13]
    (result,) = llm.generate(PROMPT, SamplingParams(**params, stop=[stop]))
    assert len(result.outputs[0].logprobs) == len(result.outputs[0].token_ids) < 20


# Chat, streaming, ends.


def test_chat(llm):
    messages = [{"role": "user", "content": "def add(a, b):"}]
    result = llm.chat(messages, GREEDY)
    text = llm.tokenizer.apply_chat_template(messages)
    assert result.prompt == text
    assert result.prompt_token_ids == llm.tokenizer.encode(text, add_special_tokens=False)
    assert texts([result]) == texts(llm.generate({"prompt_token_ids": result.prompt_token_ids}, GREEDY))


def test_streams_grow_to_what_generate_returns(llm):
    params = SamplingParams(n=2, seed=9, max_tokens=20, stop=["zzz"])
    prompts = [PROMPT, "import os\n", "class Tree:\n"]

    async def stream(prompt):
        seen, result = [], None
        async for result in llm.generate_async(prompt, params):
            seen.append([completion.text for completion in result.outputs])
        assert result.finished
        for before, after in itertools.pairwise(seen):
            assert all(b.startswith(a) for a, b in zip(before, after, strict=True))
        assert len(seen) > 5
        return texts([result])

    async def run():
        return await asyncio.gather(*map(stream, prompts))

    assert asyncio.run(run()) == [texts([result]) for result in llm.generate(prompts, params)]


def test_a_stream_with_stop_strings_and_errors(llm):
    async def run():
        whole = [result async for result in llm.generate_async(PROMPT, GREEDY)][-1].outputs[0].text
        params = SamplingParams(temperature=0.0, max_tokens=200, stop=[whole[8:11]])
        stopped = [result async for result in llm.generate_async(PROMPT, params)][-1]
        assert stopped.outputs[0].text == whole[:whole.index(whole[8:11])]
        with pytest.raises(RequestError, match="prompt is empty"):
            await anext(llm.generate_async(""))

    asyncio.run(run())
    assert llm._executor.stats().num_running == 0


def until_idle(llm):
    while (stats := llm._executor.stats()).num_running or stats.num_blocks_used:
        pass
    return stats


def test_leaving_a_stream_cancels_it(llm):
    long = SamplingParams(max_tokens=480, ignore_eos=True)

    async def closed():
        async with aclosing(llm.generate_async(PROMPT, long)) as stream:
            await anext(stream)

    async def cancelled():
        task = asyncio.create_task(closed_after_all())
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def closed_after_all():
        async for _ in llm.generate_async(PROMPT, long):
            started.set()

    asyncio.run(closed())
    until_idle(llm)
    started = asyncio.Event()
    asyncio.run(cancelled())
    until_idle(llm)


def test_an_event_loop_that_is_closed_under_a_stream_harms_nobody(llm, caplog):
    loop = asyncio.new_event_loop()
    stream = llm.generate_async(PROMPT, SamplingParams(max_tokens=480, ignore_eos=True))
    loop.run_until_complete(anext(stream))
    loop.close()
    until_idle(llm)
    assert caplog.text == ""
    assert texts(llm.generate(PROMPT, GREEDY)) != [""]
    asyncio.run(stream.aclose())


def test_threads_share_an_llm(llm):
    expected = {i: texts(llm.generate(f"# {i}\n", GREEDY)) for i in range(6)}
    got = {}
    threads = [threading.Thread(target=lambda i=i: got.update({i: texts(llm.generate(f"# {i}\n", GREEDY))}))
               for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert got == expected


def test_shutdown_twice_frees_the_engine_and_fails_what_follows(llm):
    again = LLM(llm.engine_dir, kv_cache_config=KvCacheConfig(max_blocks=32), num_threads=1)
    runner = weakref.ref(again._executor.loop.runner)
    again.shutdown()
    again.shutdown()
    gc.collect()
    assert runner() is None
    with pytest.raises(EngineDeadError, match="it was shut down"):
        again.generate(PROMPT, GREEDY)


def test_an_llm_that_is_let_go_of_ends_its_engine(llm):
    again = LLM(llm.engine_dir, kv_cache_config=KvCacheConfig(max_blocks=32), num_threads=1)
    thread, runner = again._executor._thread, weakref.ref(again._executor.loop.runner)
    del again
    gc.collect()
    assert not thread.is_alive()
    assert runner() is None


def test_a_program_that_forgets_to_shut_down_ends(llm):
    code = ("import asyncio, sys; from pelton import LLM, SamplingParams\n"
            "llm = LLM(sys.argv[1], num_threads=1, kv_cache_config={'max_blocks': 32})\n"
            "stream = llm.generate_async('x', SamplingParams(max_tokens=500, ignore_eos=True))\n"
            "loop = asyncio.new_event_loop(); loop.run_until_complete(anext(stream))\n"
            "print('end')\n")
    done = subprocess.run([sys.executable, "-c", code, str(llm.engine_dir)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "end\n")
    assert "Fatal" not in done.stderr


def test_public_names():
    request = Request(input_token_ids=[1, 2], max_new_tokens=7, sampling_params=SamplingParams(temperature=0.5))
    assert request.sampling_params.max_tokens == 7
    assert request.sampling_params.temperature == 0.5
