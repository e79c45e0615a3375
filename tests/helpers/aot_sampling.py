"""Launches of the sampler and of decode rows, to be compiled ahead of time (helpers/triton_aot.py)."""

from functools import partial

import torch

from pelton.kernels.decode_rows import triton as decode_rows
from pelton.kernels.decode_rows.reference import DecodeBuffers
from pelton.kernels.sampling import triton as sampler
from pelton.kernels.sampling.state import SlotParams

_VOCAB_SIZES = {"llama-3": 128_256, "qwen2.5": 151_936, "gpt-2, rows of odd length": 50_257}
_NUM_ROWS = 3


def _rows(vocab_size=152_064):
    state = SlotParams(8, vocab_size, torch.device("cpu"))
    return state.rows(torch.arange(_NUM_ROWS), torch.arange(_NUM_ROWS, dtype=torch.int32))


def _logits(vocab_size=152_064):
    return torch.zeros(_NUM_ROWS, vocab_size)


def _draw(vocab_size, truncates):
    sampler.sample(_logits(vocab_size), _rows(vocab_size), truncates=truncates)


def _fill():
    buffers = DecodeBuffers.empty(4, 512, "cpu")
    decode_rows.fill(buffers, torch.arange(3), torch.arange(3, dtype=torch.int32), torch.zeros(8, dtype=torch.int64),
                     torch.zeros(8, 512, dtype=torch.int32), num_padded=4, tokens_per_block=64)


CASES = {
    **{f"draw, {name}": partial(_draw, size, False) for name, size in _VOCAB_SIZES.items()},
    "draw of kept sets": partial(_draw, _VOCAB_SIZES["llama-3"], True),  # half a minute each: one is enough
    "penalties": lambda: sampler.adjust(_logits(), _rows(), addends=None, has_penalties=True),
    "logprobs": lambda: sampler.logprobs(_logits(), torch.arange(2), torch.arange(2), 20),
    "decode-rows": _fill,
}
