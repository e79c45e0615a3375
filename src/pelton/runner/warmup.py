"""Before an engine is ready: every kernel that a step may launch is compiled, and the decode graphs are captured.

Made-up batches go through the runner's own steps, so that what is compiled is what will run. They write into blocks
and slots that nobody has yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from pelton.runner.padding import token_sizes
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
_MANY_ROWS = 33
"""Torch's own kernels are others from 17 indices on."""


def warm_up(runner: Runner, wait_for_weights: Callable[[], None]) -> None:
    """Runs prompts of all lengths at which kernels change, steps of all kinds, and every graph once. No graph is
    captured while weights are still copied on other threads."""
    most = min(runner.limits.max_num_tokens, runner.limits.max_seq_len - 2,
               runner.num_blocks * runner.limits.tokens_per_block - 2)
    for num_tokens in reversed(token_counts(most)):  # the largest first: smaller ones find its memory
        _run(runner, _prompt(runner, num_tokens), _GREEDY)
    for sampling in _SAMPLINGS:
        _run(runner, _mixed(runner, min(most, 8), sampling), sampling)
    _run(runner, _many(runner), _GREEDY, num_slots=_num_many(runner))
    for num_tokens in token_sizes(runner.limits.max_num_tokens):
        runner.run_products(num_tokens)
    wait_for_weights()
    runner.capture_graphs()
    _run(runner, _mixed(runner, 1, _GREEDY), _GREEDY)
    torch.cuda.synchronize()


def token_counts(most: int) -> list[int]:
    """Numbers of tokens on both sides of every border at which kernels may change: powers of two up to `most`."""
    counts = {1, most}
    power = 2
    while power <= most:
        counts |= {power, min(power + 1, most)}
        power *= 2
    return sorted(counts)


def _run(runner: Runner, batches: Iterator[Batch], sampling: SamplingParams, *, num_slots: int = 1) -> None:
    for batch in batches:
        step = runner.forward(batch)
        runner.sample(step, {0: [1]} if sampling.needs_counts else None)
        step.result()
    runner.forget(list(range(num_slots)))


def _prompt(runner: Runner, num_tokens: int) -> Iterator[Batch]:
    """A prompt of num_tokens."""
    yield Batch(0, [0], [0], [num_tokens], [True], 0, [_first(runner, num_tokens, _GREEDY)], [], [])


def _mixed(runner: Runner, num_tokens: int, sampling: SamplingParams) -> Iterator[Batch]:
    """A prompt of num_tokens, then two decode steps, one of them beside a prompt of one token, then a prompt again."""
    limits = runner.limits
    has_two = limits.max_batch_size > 1 and limits.max_num_tokens > 1
    yield Batch(0, [0], [0], [num_tokens], [True], 0, [_first(runner, num_tokens, sampling)], [], [])
    yield Batch(1, [0], [num_tokens], [1], [True], 1, [], [], [])
    if has_two:
        second = SlotInit(1, [0], 1, [0], _GREEDY, 0, ())
        yield Batch(2, [0, 1], [num_tokens + 1, 0], [1, 1], [True, True], 1, [second], [], [])
    last = SlotInit(0, [0], 1, [0], _GREEDY, 0, ())  # slots are freed by the batch after
    yield Batch(3, [0], [0], [1], [True], 0, [last], [], [0, 1] if has_two else [0])


def _num_many(runner: Runner) -> int:
    return min(_MANY_ROWS, runner.limits.max_batch_size, runner.limits.max_num_tokens)


def _many(runner: Runner) -> Iterator[Batch]:
    """As many prompts of one token, then all but one of them decode, beside a prompt again."""
    num = _num_many(runner)
    slots, ones, sampled = list(range(num)), [1] * num, [True] * num
    new = [SlotInit(slot, [0], 1, [0], _GREEDY, 0, ()) for slot in slots]
    yield Batch(0, slots, [0] * num, ones, sampled, 0, new, [], [])
    yield Batch(1, slots, [*ones[1:], 0], ones, sampled, num - 1, [new[-1]], [], [num - 1])


def _first(runner: Runner, num_tokens: int, sampling: SamplingParams) -> SlotInit:
    num_blocks = -(-(num_tokens + 2) // runner.limits.tokens_per_block)
    return SlotInit(0, [0] * num_tokens, num_tokens, list(range(num_blocks)), sampling, 0, (1,))
