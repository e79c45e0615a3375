"""A runner's stream and the caller's: what is made on one is there before it is used on the other."""

from __future__ import annotations

import pytest
import torch
from helpers.checkpoints import make_checkpoint

from pelton.build.prepare import ensure_engine
from pelton.config import BuildConfig, ExecutorConfig, KvCacheConfig
from pelton.runner import runner as runner_module
from pelton.runner.device import CudaQueue
from pelton.runner.runner import Runner

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

LONG_CYCLES = 1_000_000_000
"""Half a second of the GPU: longer than what is queued after it takes to queue."""


def keep_busy() -> None:
    """Lets all that is queued on the current stream from here on start late."""
    torch.cuda._sleep(LONG_CYCLES)


def test_jobs_find_what_their_caller_had_queued():
    device = torch.device("cuda", torch.cuda.current_device())
    x = torch.zeros(1000, device=device)
    torch.cuda.synchronize()
    keep_busy()
    x.fill_(1.0)
    queue, seen = CudaQueue(device), []
    queue.submit(lambda: seen.append(x.clone()))
    keep_busy()
    x.fill_(2.0)
    queue.wait_for_caller()
    queue.submit(lambda: seen.append(x.clone()))
    queue.signal().wait()
    assert [int(values.sum()) for values in seen] == [1000, 2000]


def test_a_runner_does_not_write_where_its_weights_are_still_being_made(tmp_path, monkeypatch):
    """Gemma's norms are weight + 1, and the slots take the memory of the weights that this replaces. With a busy GPU
    the sums were computed from the slots' content."""
    path = make_checkpoint("Gemma2ForCausalLM", tmp_path, dtype="float32", seed=3)
    build = BuildConfig(tokens_per_block=16, max_seq_len=256, max_batch_size=16, max_num_tokens=512)
    engine_dir = ensure_engine(str(path), build, device="cuda", tuning="off", show_progress=False)
    config = ExecutorConfig(device="cuda", kv_cache_config=KvCacheConfig(max_blocks=64))

    def norms(runner: Runner) -> list[torch.Tensor]:
        layers = runner._decoder.layers
        found = [norm.weight for layer in layers
                 for norm in (layer.attn_norm, layer.attn_post_norm, layer.mlp_norm, layer.mlp_post_norm)]
        return [weight.cpu() for weight in (*found, runner._decoder.norm.weight)]

    first = Runner.from_engine(engine_dir, config)
    want = norms(first)
    first.close()
    del first

    class SlowPool(runner_module.KvPool):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            keep_busy()

    monkeypatch.setattr(runner_module, "KvPool", SlowPool)
    runner = Runner.from_engine(engine_dir, config)
    got = norms(runner)
    runner.close()
    assert all(mine.equal(its) for mine, its in zip(got, want, strict=True))
