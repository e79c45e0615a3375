"""The one-launch filling of a graph's buffers against plain torch."""

import pytest
import torch
from helpers.triton_interpret import DEVICE

from pelton.kernels.decode_rows import reference
from pelton.kernels.decode_rows import triton as fused
from pelton.kernels.decode_rows.reference import DecodeBuffers


@pytest.mark.parametrize(("num_rows", "num_padded"), [(1, 1), (3, 4), (13, 16)])
def test_agrees_with_reference(num_rows, num_padded):
    seed = torch.seed() % 2**32
    print("seed", seed)
    generator = torch.Generator().manual_seed(seed)
    size, max_blocks, num_slots = 16, 300, 20
    tables = torch.randint(0, 9000, (num_slots, max_blocks), dtype=torch.int32, generator=generator)
    last_tokens = torch.randint(0, 2**40, (num_slots,), generator=generator)
    slots = torch.randperm(num_slots, generator=generator)[:num_rows]
    positions = torch.randint(0, size * max_blocks, (num_rows,), dtype=torch.int32, generator=generator)
    positions[0] = size * max_blocks - 1
    both = []
    for op in (reference, fused):
        buffers = DecodeBuffers.empty(num_padded + 2, max_blocks, DEVICE)
        for tensor in vars(buffers).values():
            tensor.fill_(77)
        op.fill(buffers, *(t.to(DEVICE) for t in (slots, positions, last_tokens, tables)), num_padded=num_padded,
                tokens_per_block=size)
        both.append(buffers)
    expected, filled = both
    for name in ("token_ids", "positions", "seq_lens", "slot_mapping"):
        assert getattr(filled, name).tolist() == getattr(expected, name).tolist(), name
    for row, position in enumerate(positions.tolist()):
        used = position // size + 1
        assert filled.block_tables[row, :used].tolist() == expected.block_tables[row, :used].tolist()
    assert (filled.block_tables[num_rows:] == 77).all()
