"""Through the whole engine every architecture says what transformers says: 64 greedy tokens, however it is run."""

from __future__ import annotations

import random

import pytest
import torch
from helpers.checkpoints import ARCHITECTURES, load_reference, make_checkpoint

from pelton.build.prepare import ensure_engine
from pelton.config import BuildConfig, ExecutorConfig, KvCacheConfig
from pelton.engine.executor import Executor
from pelton.types import Request, SamplingParams

NUM_NEW = 64
GREEDY = SamplingParams(temperature=0.0, max_tokens=NUM_NEW, ignore_eos=True, logprobs=0)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def case(request, tmp_path_factory):
    """An engine directory, four prompts, and what transformers generates for each of them."""
    folder = tmp_path_factory.mktemp("parity")
    path = make_checkpoint(request.param, folder, dtype="float32", seed=3)
    reference = load_reference(path)
    draw = random.Random(7)
    prompts = [[draw.randrange(6, 320) for _ in range(size)] for size in (5, 37, 70, 130)]
    prompts.append([*prompts[3][:100], 9, 8, 7])  # shares a prefix
    expected = [_reference_tokens(reference, prompt) for prompt in prompts]
    return ensure_engine(str(path), BuildConfig(tokens_per_block=16, max_seq_len=256)), prompts, expected


def _reference_tokens(model, prompt):
    with torch.inference_mode():
        model.generation_config.eos_token_id = None  # min_new_tokens would ban the token instead of ignoring it
        out = model.generate(torch.tensor([prompt]), max_new_tokens=NUM_NEW, do_sample=False)
    return out[0, len(prompt):].tolist()


def _run(executor, requests):
    tokens = {request.request_id: [] for request in requests}
    cached = dict.fromkeys(tokens, 0)
    for request in requests:
        executor.enqueue_request(request)
    for request in requests:
        is_done = False
        while not is_done:
            for output in executor.await_response(request.request_id, timeout=60):
                assert output.error is None, output.error
                tokens[request.request_id] += output.token_ids
                cached[request.request_id] = max(cached[request.request_id], output.num_cached_tokens)
                is_done = output.finish_reason is not None
    return list(tokens.values()), list(cached.values())


@pytest.mark.parametrize("overlap", [True, False], ids=["overlap", "sync"])
@pytest.mark.parametrize("options", [
    pytest.param({}, id="mixed-batch"),
    pytest.param({"max_num_tokens": 24}, id="chunked"),
    pytest.param({"max_batch_size": 1}, id="alone"),
    pytest.param({"in_flight_batching": False, "max_batch_size": 2}, id="static"),
])
def test_greedy_tokens_equal_transformers(case, options, overlap):
    engine_dir, prompts, expected = case
    config = ExecutorConfig(**options, overlap=overlap,
                            kv_cache_config=KvCacheConfig(max_blocks=128, enable_block_reuse=False))
    with Executor(engine_dir, config) as executor:
        tokens, cached = _run(executor, [Request(prompt, sampling_params=GREEDY) for prompt in prompts])
    assert tokens == expected
    assert cached == [0] * len(prompts)


def test_reused_prefix_changes_nothing(case):
    engine_dir, prompts, expected = case
    with Executor(engine_dir, ExecutorConfig(kv_cache_config=KvCacheConfig(max_blocks=128))) as executor:
        for _ in range(2):
            tokens, cached = _run(executor, [Request(prompt, sampling_params=GREEDY) for prompt in prompts])
            assert tokens == expected
    assert cached == [0, 32, 64, 128, 96]  # whole blocks of 16, and never the last token


@pytest.mark.parametrize("overlap", [True, False], ids=["overlap", "sync"])
def test_preemption_changes_nothing(case, overlap):
    engine_dir, prompts, expected = case
    # 16 blocks of 16 tokens hold one sequence at full length and little more, so the others are thrown out on the way.
    config = ExecutorConfig(kv_cache_config=KvCacheConfig(max_blocks=16), overlap=overlap)
    with Executor(engine_dir, config) as executor:
        tokens, _ = _run(executor, [Request(prompt, sampling_params=GREEDY) for prompt in prompts])
        assert executor.stats().num_preemptions > 0
        assert executor.stats().num_blocks_used == 0
    assert tokens == expected


def test_rotation_by_length_shares_no_wrong_block(tmp_path):
    """Past the original length dynamic scaling rotates a prompt by its whole length: equal prefixes differ then."""
    path = make_checkpoint("LlamaForCausalLM", tmp_path, seed=5, max_position_embeddings=64,
                           rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0})
    draw = random.Random(2)
    longest = [draw.randrange(6, 320) for _ in range(120)]
    prompts = [longest[:40], longest[:90], longest, [*longest[:40], *[9] * 10]]
    expected = [_reference_tokens(load_reference(path), prompt) for prompt in prompts]
    engine_dir = ensure_engine(str(path), BuildConfig(tokens_per_block=16))
    # Chunks of 32, and every prompt twice: the second time its own blocks are reused, and no other's.
    config = ExecutorConfig(max_num_tokens=32, max_batch_size=8, kv_cache_config=KvCacheConfig(max_blocks=128))
    with Executor(engine_dir, config) as executor:
        for round_number in range(2):
            for prompt, tokens in zip(prompts, expected, strict=True):
                got, cached = _run(executor, [Request(prompt, sampling_params=GREEDY)])
                assert got == [tokens]
                if round_number:
                    assert cached == [(len(prompt) - 1) // 16 * 16]
        # The first round shared only the 32 tokens that prompts within the original length have in common.
        assert executor.stats().num_cached_tokens == 32 + (32 + 80 + 112 + 48)
