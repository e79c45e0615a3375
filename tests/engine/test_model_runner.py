"""`ModelRunner`: whole batches of token ids, as TensorRT-LLM's users know it."""

from __future__ import annotations

import pytest
import torch

from pelton import ExecutorConfig, KvCacheConfig, ModelRunner, Request, SamplingParams
from pelton.build.prepare import ensure_engine
from pelton.engine.executor import Executor
from pelton.errors import EngineDeadError, EngineError, RequestError

CONFIG = ExecutorConfig(num_threads=1, max_queue_size=4, kv_cache_config=KvCacheConfig(max_blocks=64))
PROMPTS = [[5, 6, 7], [100, 200, 300, 400, 500], [9]]


@pytest.fixture(scope="module")
def engine_dir():
    return ensure_engine("pelton-tiny", show_progress=False)


@pytest.fixture(scope="module")
def runner(engine_dir):
    with ModelRunner.from_dir(engine_dir, CONFIG) as runner:
        yield runner


@pytest.fixture(scope="module")
def alone(engine_dir):
    """Greedy tokens of one prompt by itself."""
    with Executor(engine_dir, CONFIG) as executor:
        def generate(prompt, max_new_tokens, **options):
            tokens = []
            params = SamplingParams(max_tokens=max_new_tokens, temperature=0.0)
            executor.run([Request(prompt, sampling_params=params, **options)],
                         lambda output: tokens.extend(output.token_ids))
            return tokens

        yield generate


def test_rows_are_prompt_completion_and_padding(runner, alone):
    out = runner.generate(PROMPTS, 10, temperature=0.0, pad_id=77)
    want = [prompt + alone(prompt, 10) for prompt in PROMPTS]
    longest = max(map(len, want))
    assert (out.dtype, out.shape) == (torch.int32, (3, 1, longest))
    assert out[:, 0].tolist() == [row + [77] * (longest - len(row)) for row in want]


def test_tensors_and_more_prompts_than_the_queue_holds(runner, alone):
    prompts = [torch.tensor([i, i + 1]) for i in range(10, 30)]
    out = runner.generate(prompts, max_new_tokens=3, temperature=0.0, end_id=6143)
    for prompt, row in zip(prompts, out[:, 0].tolist(), strict=True):
        assert row == prompt.tolist() + alone(prompt.tolist(), 3, end_ids=(6143,))


def test_end_id_ends_a_row(runner, alone):
    tokens = alone(PROMPTS[1], 10, end_ids=(6143,))
    end = tokens[4]
    out = runner.generate([PROMPTS[1]], 10, temperature=0.0, end_id=end)
    assert out[0, 0].tolist() == PROMPTS[1] + tokens[:tokens.index(end) + 1]


def test_sampling_repeats_with_the_seed(runner):
    first, again, other = (runner.generate(PROMPTS, 12, temperature=0.9, top_p=0.9, top_k=50, seed=seed).tolist()
                           for seed in (1, 1, 2))
    assert first == again != other


def test_an_empty_batch(runner):
    assert runner.generate([], 5).shape == (0, 1, 0)


@pytest.mark.parametrize(("arguments", "match"), [
    (([[1], []], 5), "at least one token"),
    (([[1], [6144]], 5), "got 6144"),
    (([[1], ["a"]], 5), "batch_input_ids must hold"),
    (([1, 2], 5), "batch_input_ids must hold"),
    (([[1], torch.tensor([0.5])], 5), "batch_input_ids must hold"),
    (([[1], torch.tensor([[1, 2]])], 5), "batch_input_ids must hold"),
    (([[1]], 0), "max_tokens must be at least 1"),
    (([[1]], "many"), "max_tokens must be an integer"),
    (([[1]], 5, -1.0), "temperature"),
    (([[1]], 5, 1.0, 0.0), "top_p"),
])
def test_bad_arguments_run_nothing(runner, arguments, match):
    before = runner._executor.stats()
    with pytest.raises(RequestError, match=match):
        runner.generate(*arguments)
    after = runner._executor.stats()
    assert (after.num_running, after.num_waiting) == (0, 0)
    assert after.num_prompt_tokens == before.num_prompt_tokens


def test_ends(engine_dir, tmp_path):
    with pytest.raises(EngineError, match="not an engine directory"):
        ModelRunner.from_dir(tmp_path)
    runner = ModelRunner.from_dir(engine_dir, CONFIG)
    runner.shutdown()
    runner.shutdown()
    with pytest.raises(EngineDeadError, match="shut down"):
        runner.generate(PROMPTS, 5)
