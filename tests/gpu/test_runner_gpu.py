"""The whole engine on a GPU: tokens of transformers, graphs against eager steps, overlap, cancels, memory."""

from __future__ import annotations

import gc
import random
import threading
import time

import pytest
import torch
from helpers.checkpoints import ARCHITECTURES, load_reference, make_checkpoint

from pelton.build.limits import resolve_limits
from pelton.build.prepare import ensure_engine
from pelton.config import BuildConfig, ExecutorConfig, KvCacheConfig, ModelConfig
from pelton.engine.assemble import loop_over
from pelton.engine.executor import Executor
from pelton.errors import CapacityError
from pelton.manifest import read_manifest
from pelton.runner import upload
from pelton.runner.load import reads_weights
from pelton.runner.memory import GPU_GROWTH_BYTES
from pelton.runner.runner import Runner
from pelton.types import Request, SamplingParams

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

NUM_NEW = 64
GREEDY = SamplingParams(temperature=0.0, max_tokens=NUM_NEW, ignore_eos=True)
BUILD = BuildConfig(tokens_per_block=16, max_seq_len=256, max_batch_size=16, max_num_tokens=512)


def config(**changes) -> ExecutorConfig:
    kv = KvCacheConfig(max_blocks=changes.pop("max_blocks", 128), enable_block_reuse=changes.pop("reuse", False))
    return ExecutorConfig(device="cuda", kv_cache_config=kv, **changes)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def case(request, tmp_path_factory):
    """An engine directory, prompts, and what transformers generates for each on this GPU."""
    path = make_checkpoint(request.param, tmp_path_factory.mktemp("parity"), dtype="float32", seed=3)
    reference = load_reference(path).cuda()
    reference.generation_config.eos_token_id = None
    draw = random.Random(7)
    prompts = [[draw.randrange(6, 320) for _ in range(size)] for size in (5, 37, 70, 130)]
    prompts.append([*prompts[3][:100], 9, 8, 7])
    with torch.inference_mode():
        expected = [reference.generate(torch.tensor([prompt], device="cuda"), max_new_tokens=NUM_NEW,
                                       do_sample=False)[0, len(prompt):].tolist() for prompt in prompts]
    return ensure_engine(str(path), BUILD, device="cuda", tuning="off", show_progress=False), prompts, expected


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    path = make_checkpoint("LlamaForCausalLM", tmp_path_factory.mktemp("llama"), dtype="bfloat16", seed=1)
    return ensure_engine(str(path), BUILD, device="cuda", tuning="off", show_progress=False)


def run(executor, requests):
    tokens = {request.request_id: [] for request in requests}
    executor.run(requests, lambda output: tokens[output.request_id].extend(output.token_ids))
    return list(tokens.values())


@pytest.mark.parametrize("overlap", [True, False], ids=["overlap", "sync"])
@pytest.mark.parametrize("options", [
    pytest.param({}, id="mixed-batch"),
    pytest.param({"max_num_tokens": 24}, id="chunked"),
    pytest.param({"max_batch_size": 1}, id="alone"),
])
def test_greedy_tokens_equal_transformers(case, options, overlap):
    engine_dir, prompts, expected = case
    with Executor(engine_dir, config(**options, overlap=overlap)) as executor:
        assert executor.loop.runner._decode_graphs is not None
        assert run(executor, [Request(prompt, sampling_params=GREEDY) for prompt in prompts]) == expected


def test_preemption_and_reused_prefixes_change_nothing(case):
    engine_dir, prompts, expected = case
    with Executor(engine_dir, config(max_blocks=16, reuse=True)) as executor:
        for _ in range(2):
            assert run(executor, [Request(prompt, sampling_params=GREEDY) for prompt in prompts]) == expected
        assert executor.stats().num_preemptions > 0
        assert executor.stats().num_blocks_used == 0


def test_weights_that_come_late_are_those_of_the_file(case, monkeypatch):
    """The runner is made and warmed up while nothing of them is there."""
    engine_dir, prompts, expected = case
    may_begin, model = threading.Event(), read_manifest(engine_dir).model

    def drain(*args, inner=upload.drain_checked, **options):
        assert may_begin.wait(300)
        inner(*args, **options)

    def wait(weights, inner=upload.WeightUpload.wait):
        may_begin.set()
        return inner(weights)

    monkeypatch.setattr(upload, "drain_checked", drain)
    monkeypatch.setattr(upload.WeightUpload, "wait", wait)
    with Executor(engine_dir, config()) as executor:
        assert run(executor, [Request(prompt, sampling_params=GREEDY) for prompt in prompts]) == expected
    assert may_begin.is_set()
    assert reads_weights(model, "float32", torch.device("cuda")) == (model.norm_weight_offset != 0)


def mixed_requests(num, seed):
    draw = random.Random(seed)
    params = [
        {"temperature": 0.0}, {"temperature": 1.0}, {"top_k": 20}, {"top_p": 0.9}, {"min_p": 0.05, "temperature": 0.7},
        {"presence_penalty": 1.0, "frequency_penalty": 0.5, "repetition_penalty": 1.2}, {"logit_bias": {7: 4.0}},
        {"min_tokens": 1}, {"logprobs": 4}, {"logprobs": 2, "repetition_penalty": 1.5}, {"prompt_logprobs": 3},
        {"bad_words_token_ids": ((5, 6), (9,))},
    ]
    return [Request([draw.randrange(6, 320) for _ in range(draw.randrange(1, 150))], sampling_params=SamplingParams(
        max_tokens=draw.randrange(2, 60), seed=i, ignore_eos=bool(i % 2), **params[i % len(params)]))
        for i in range(num)]


def test_graphs_and_eager_steps_draw_the_same(tmp_path_factory):
    """In float32, where both round alike enough; every sampling parameter takes part."""
    path = make_checkpoint("Qwen2ForCausalLM", tmp_path_factory.mktemp("graphs"), dtype="float32", seed=5)
    engine_dir = ensure_engine(str(path), BUILD, device="cuda", tuning="off", show_progress=False)
    texts = []
    for is_eager in (False, True):
        runner = Runner.from_engine(engine_dir, config())
        if is_eager:
            runner._decode_graphs = runner._prompt_graphs = None
        with Executor(loop_over(runner, config())) as executor:
            texts.append(run(executor, mixed_requests(36, seed=2)))
    assert texts[0] == texts[1]


def test_cpu_and_gpu_draw_the_same(tmp_path_factory):
    """The random stream is one of integers; in float32 the logits are close enough for the same text."""
    path = make_checkpoint("LlamaForCausalLM", tmp_path_factory.mktemp("devices"), dtype="float32", seed=8)
    texts = []
    for device in ("cuda", "cpu"):
        engine_dir = ensure_engine(str(path), BUILD, device=device, tuning="off", show_progress=False)
        options = ExecutorConfig(device=device, kv_cache_config=KvCacheConfig(max_blocks=128))
        with Executor(engine_dir, options) as executor:
            texts.append(run(executor, mixed_requests(24, seed=4)))
    num_same = sum(ours == theirs for ours, theirs in zip(*texts, strict=True))
    assert num_same >= 22, f"{num_same} of 24 texts agree"


@pytest.mark.parametrize("overlap", [True, False], ids=["overlap", "sync"])
def test_cancels_leave_nothing_behind(llama, overlap):
    """Many mixed requests, a third of them cancelled on the way, over few blocks: all blocks end free and torch holds
    no more memory than before."""
    with Executor(llama, config(max_blocks=40, overlap=overlap)) as executor:
        run(executor, mixed_requests(12, seed=0))
        before = torch.cuda.memory_allocated()
        requests = mixed_requests(300, seed=1)
        cancelled = requests[::3]
        open_ids = {request.request_id for request in requests}
        for request in requests:
            executor.enqueue_request(request)
        for i, request in enumerate(cancelled):
            if i % 10 == 0:
                time.sleep(0.001)
            executor.cancel(request.request_id)
        for request in requests:
            while request.request_id in open_ids:
                if any(output.finish_reason for output in executor.await_response(request.request_id, timeout=60)):
                    open_ids.discard(request.request_id)
        stats = executor.stats()
        assert (stats.num_blocks_used, stats.num_running, stats.num_waiting) == (0, 0, 0)
        torch.cuda.synchronize()
        assert torch.cuda.memory_allocated() <= before + 2**20


def test_nothing_is_compiled_or_captured_after_ready(llama, monkeypatch):
    from triton.compiler import compiler

    with Executor(llama, config()) as executor:
        run(executor, [])
        monkeypatch.setattr(compiler, "compile", lambda *args, **kwargs: pytest.fail("a kernel was compiled"))
        monkeypatch.setattr("triton.runtime.jit.JITFunction._do_compile",
                            lambda self, *args, **kwargs: pytest.fail(f"{self.__name__} was compiled while serving"))
        monkeypatch.setattr(torch.cuda.CUDAGraph, "capture_begin", lambda *args: pytest.fail("a graph was captured"))
        run(executor, mixed_requests(60, seed=6))


def test_memory_stays_within_the_ledger(llama):
    """Of torch's allocator and of the whole process; what earlier tests left behind is in the reserve."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_reserved()
    runner = Runner.from_engine(llama, ExecutorConfig(device="cuda"))
    with Executor(loop_over(runner, config())) as executor:
        run(executor, mixed_requests(60, seed=6))
    ledger = runner.ledger
    ours = ledger.fixed_bytes - ledger.reserve_bytes + ledger.kv_blocks_bytes
    free, total = torch.cuda.mem_get_info()
    assert torch.cuda.max_memory_reserved() - before <= ours + GPU_GROWTH_BYTES
    assert total - free <= ledger.fixed_bytes + ledger.kv_blocks_bytes


def test_too_large_a_model_is_refused_before_anything_is_allocated():
    shape = ModelConfig(architecture="LlamaForCausalLM", vocab_size=128256, hidden_size=8192, intermediate_size=28672,
                        num_layers=160, num_heads=64, num_kv_heads=8, head_dim=128, max_position_embeddings=4096)
    torch.cuda.init()
    before, began = torch.cuda.memory_allocated(), time.perf_counter()
    with pytest.raises(CapacityError, match=r"go to weights and the rest \(weights 2\d\d\.\d\d, activations"):
        Runner.from_config(shape, resolve_limits(BuildConfig(), shape), ExecutorConfig(device="cuda"))
    assert time.perf_counter() - began < 1
    assert torch.cuda.memory_allocated() == before
