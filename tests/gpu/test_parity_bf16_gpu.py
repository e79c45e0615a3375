"""Whole models in bfloat16 on a GPU against transformers in bfloat16 and, as the truth, in float32.

Two implementations in bfloat16 round in different places, so their greedy texts part where two tokens are nearly equal.
How nearly is measured here by the error of transformers' own bfloat16 logits against float32's, without ours: a choice
may turn over only where the float32 logits of both tokens are less than ERRORS times its root mean square apart.
"""

from __future__ import annotations

import random

import pytest
import torch
from helpers.checkpoints import ARCHITECTURES, load_reference, make_checkpoint

from pelton.build.prepare import ensure_engine
from pelton.config import BuildConfig, ExecutorConfig, KvCacheConfig
from pelton.engine.executor import Executor
from pelton.types import Request, SamplingParams

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

NUM_NEW = 48
ERRORS = 6
"""The error of a difference of two logits is √2 of them; four standard deviations of that."""
GREEDY = SamplingParams(temperature=0.0, max_tokens=NUM_NEW, ignore_eos=True, logprobs=0)
BUILD = BuildConfig(tokens_per_block=16, max_seq_len=256, max_batch_size=16, max_num_tokens=512)


class Models:
    """transformers' model of a checkpoint in two types, and the engine of it."""

    def __init__(self, architecture: str, folder):
        path = make_checkpoint(architecture, folder, dtype="bfloat16", seed=11)
        self.half = load_reference(path, dtype="bfloat16").cuda()
        self.exact = load_reference(path, dtype="float32").cuda()
        self.half.generation_config.eos_token_id = None
        self.engine_dir = ensure_engine(str(path), BUILD, device="cuda", tuning="off", show_progress=False)
        draw = random.Random(5)
        self.prompts = [[draw.randrange(6, 320) for _ in range(size)]
                        for size in (1, 5, 17, 37, 64, 65, 70, 100, 130, 190)]

    @torch.inference_mode()
    def texts(self) -> list[list[int]]:
        """What transformers generates in bfloat16."""
        return [self.half.generate(torch.tensor([prompt], device="cuda"), max_new_tokens=NUM_NEW,
                                   do_sample=False)[0, len(prompt):].tolist() for prompt in self.prompts]

    @torch.inference_mode()
    def logits(self, prompt: list[int], text: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """[NUM_NEW, V] float32 each, in bfloat16 and in float32, before each token of the text."""
        ids = torch.tensor([prompt + text], device="cuda")
        return tuple(model(ids).logits[0, len(prompt) - 1:-1].float() for model in (self.half, self.exact))


@pytest.fixture(scope="module", params=ARCHITECTURES)
def models(request, tmp_path_factory) -> Models:
    return Models(request.param, tmp_path_factory.mktemp("bf16"))


def run(engine_dir, requests: list[Request], **options) -> tuple[list[list[int]], list[list[float]]]:
    """Tokens and, where asked for, their log-probabilities."""
    tokens = {request.request_id: [] for request in requests}
    logprobs = {request.request_id: [] for request in requests}

    def take(output) -> None:
        tokens[output.request_id] += output.token_ids
        logprobs[output.request_id] += [entry.logprobs[0] for entry in output.logprobs or ()]

    kv = KvCacheConfig(max_blocks=256, enable_block_reuse=False)
    with Executor(engine_dir, ExecutorConfig(device="cuda", kv_cache_config=kv, **options)) as executor:
        executor.run(requests, take)
    return list(tokens.values()), list(logprobs.values())


@pytest.mark.parametrize("options", [{}, {"max_batch_size": 1}, {"max_num_tokens": 24}], ids=str)
def test_texts_part_only_where_bfloat16_cannot_tell(models: Models, options, record_property):
    theirs = models.texts()
    ours, _ = run(models.engine_dir, [Request(prompt, sampling_params=GREEDY) for prompt in models.prompts], **options)
    parted = []
    for prompt, our_text, their_text in zip(models.prompts, ours, theirs, strict=True):
        half, exact = models.logits(prompt, their_text)
        bound = ERRORS * float((half - exact).square().mean().sqrt())
        assert bound < 0.2 * float(exact.std()), "the bound would admit anything"
        step = next((i for i, (a, b) in enumerate(zip(our_text, their_text, strict=True)) if a != b), None)
        if step is None:
            continue
        margin = abs(float(exact[step, our_text[step]] - exact[step, their_text[step]]))
        parted.append((len(prompt), step, round(margin, 4), round(bound, 4)))
        assert margin <= bound, f"prompt of {len(prompt)}: token {step} differs at a margin of {margin} over {bound}"
        assert float(exact[step].max() - exact[step, our_text[step]]) <= bound
    record_property("parted", str(parted))
    print(f"\n{models.half.config.architectures[0]} {options}: {len(parted)} of {len(ours)} part: "
          f"(prompt, token, margin, bound) {parted}")


def test_logprobs_are_as_close_to_float32_as_transformers(models: Models):
    """Of the tokens that were generated, so of prefill, decode graphs and head together."""
    texts, logprobs = run(models.engine_dir, [Request(prompt, sampling_params=GREEDY) for prompt in models.prompts])
    our_errors, their_errors = [], []
    for prompt, text, got in zip(models.prompts, texts, logprobs, strict=True):
        half, exact = (logits.log_softmax(-1).gather(1, torch.tensor(text, device="cuda")[:, None])[:, 0].double()
                       for logits in models.logits(prompt, text))
        our_errors.append(torch.tensor(got, device="cuda").double() - exact)
        their_errors.append(half - exact)
    ours, theirs = (float(torch.cat(errors).square().mean().sqrt()) for errors in (our_errors, their_errors))
    print(f"\n{models.half.config.architectures[0]}: rms error of a log-probability {ours:.2e}, theirs {theirs:.2e}")
    assert ours <= 1.3 * theirs + 1e-3


def test_the_random_stream_depends_on_seed_and_position_alone(tmp_path):
    """Not on the slot, the row, the neighbours, or a preemption. In float32, where logits differ in the last digits
    from batch to batch and too little to turn a draw over."""
    path = make_checkpoint("LlamaForCausalLM", tmp_path, dtype="float32", seed=21)
    engine_dir = ensure_engine(str(path), BUILD, device="cuda", tuning="off", show_progress=False)
    draw = random.Random(3)
    params = [{}, {"top_k": 30}, {"top_p": 0.9}, {"min_p": 0.02}, {"temperature": 1.5}, {"presence_penalty": 1.0}]

    def requests() -> list[Request]:
        return [Request(prompt, sampling_params=SamplingParams(max_tokens=60, seed=100 + i // 2, ignore_eos=True,
                                                               **params[i // 2 % len(params)]))
                for i, prompt in enumerate(prompts)]

    prompts = [[draw.randrange(6, 320) for _ in range(draw.randrange(1, 100))] for _ in range(12)]
    prompts = [prompt for prompt in prompts for _ in range(2)]  # the same request twice must be the same text
    alone, _ = run(engine_dir, requests(), max_batch_size=1)
    together, _ = run(engine_dir, requests())
    backwards, _ = run(engine_dir, requests()[::-1], max_num_tokens=32)
    assert together == alone
    assert backwards[::-1] == alone
    assert all(first == second for first, second in zip(alone[::2], alone[1::2], strict=True))
    assert len({tuple(text) for text in alone}) == len(alone) // 2
