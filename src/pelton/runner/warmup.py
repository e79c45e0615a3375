"""Before an engine is ready: every kernel that a step may launch is compiled, and the decode graphs are captured.

Made-up batches go through the runner's own steps, so that what is compiled is what will run. They write into blocks
and slots that nobody has yet.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from pelton.runner.runner import Runner
from pelton.types import Batch, SamplingParams, SlotInit

_GREEDY = SamplingParams(temperature=0.0)
_SAMPLINGS = (  # between them they take every path of the sampler
    # First, as token counts exist from then on, and kernels that may count are compiled for that.
    SamplingParams(presence_penalty=0.5, logit_bias={0: 1.0}, min_tokens=2),
    _GREEDY,
    SamplingParams(temperature=1.0),
    SamplingParams(top_k=40),
    SamplingParams(top_p=0.9),
    SamplingParams(top_p=0.9, top_k=40),
    SamplingParams(min_p=0.01),
    SamplingParams(logprobs=3, prompt_logprobs=2),
)


def warm_up(runner: Runner) -> None:
    """Runs steps of all shapes, then captures the graphs and runs one."""
    sizes = token_counts(min(runner.limits.max_num_tokens, runner.limits.max_seq_len - 2,
                             runner.num_blocks * runner.limits.tokens_per_block - 2))
    for num_tokens in reversed(sizes):  # the largest first: smaller ones find its memory
        _run(runner, num_tokens, _GREEDY)
    for sampling in _SAMPLINGS:
        _run(runner, min(sizes[-1], 8), sampling)
    runner.capture_graphs()
    _run(runner, 1, _GREEDY)
    torch.cuda.synchronize()


def token_counts(most: int) -> list[int]:
    """Numbers of tokens on both sides of every border at which kernels may change: powers of two up to `most`."""
    counts = {1, most}
    power = 2
    while power <= most:
        counts |= {power, min(power + 1, most)}
        power *= 2
    return sorted(counts)


def _run(runner: Runner, num_tokens: int, sampling: SamplingParams) -> None:
    """A prompt of num_tokens, then two decode steps, one of them beside a prompt of one token."""
    for batch in _batches(runner, num_tokens, sampling):
        step = runner.forward(batch)
        runner.sample(step, {0: [1]} if sampling.needs_counts else None)
        step.result()


def _batches(runner: Runner, num_tokens: int, sampling: SamplingParams) -> Iterator[Batch]:
    limits = runner.limits
    has_two = limits.max_batch_size > 1 and limits.max_num_tokens > 1
    num_blocks = -(-(num_tokens + 2) // limits.tokens_per_block)
    first = SlotInit(0, [0] * num_tokens, num_tokens, list(range(num_blocks)), sampling, 0, (1,))
    yield Batch(0, [0], [0], [num_tokens], [True], 0, [first], [], [])
    yield Batch(1, [0], [num_tokens], [1], [True], 1, [], [], [])
    if has_two:
        second = SlotInit(1, [0], 1, [0], _GREEDY, 0, ())
        yield Batch(2, [0, 1], [num_tokens + 1, 0], [1, 1], [True, True], 1, [second], [], [])
    # Slots are freed by the batch after; one more prompt token of a slot that is freed at once.
    last = SlotInit(0, [0], 1, [0], _GREEDY, 0, ())
    yield Batch(3, [0], [0], [1], [True], 0, [last], [], [0, 1] if has_two else [0])
    runner.forget([0])
