"""Launches of the sampler and of decode rows, to be compiled ahead of time (helpers/triton_aot.py)."""

import torch

from pelton.kernels.decode_rows import triton as decode_rows
from pelton.kernels.decode_rows.reference import DecodeBuffers
from pelton.kernels.sampling import triton as sampler
from pelton.kernels.sampling.state import SlotParams

_VOCAB_SIZE = 152064
_NUM_ROWS = 3


def _rows():
    state = SlotParams(8, _VOCAB_SIZE, torch.device("cpu"))
    return state.rows(torch.arange(_NUM_ROWS), torch.arange(_NUM_ROWS, dtype=torch.int32))


def _logits():
    return torch.zeros(_NUM_ROWS, _VOCAB_SIZE)


def _fill():
    buffers = DecodeBuffers.empty(4, 512, "cpu")
    decode_rows.fill(buffers, torch.arange(3), torch.arange(3, dtype=torch.int32), torch.zeros(8, dtype=torch.int64),
                     torch.zeros(8, 512, dtype=torch.int32), num_padded=4, tokens_per_block=64)


CASES = {
    "draw": lambda: sampler.sample(_logits(), _rows(), truncates=False),
    "draw-kept": lambda: sampler.sample(_logits(), _rows(), truncates=True),
    "penalties": lambda: sampler.adjust(_logits(), _rows(), bias=None, banned=None, has_penalties=True),
    "logprobs": lambda: sampler.logprobs(_logits(), torch.arange(2), torch.arange(2), 20),
    "decode-rows": _fill,
}
