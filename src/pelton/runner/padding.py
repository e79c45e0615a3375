"""Numbers of tokens and of rows that a GPU's steps are padded to.

A library chooses the kernel of a product by the number of its rows, among so many that two numbers 40 apart may have
different ones, and loads a kernel when it is first used, which waits for all that the device has to do. So steps run at
few numbers, all of which have run before the engine is ready.
"""

from __future__ import annotations

from bisect import bisect_left

_TOKENS = (
    *range(16, 257, 16),
    # A library is not quicker with every token less. Of the multiples of 32, and of 64 above 4,096, these are the ones
    # at which a layer's products took 1.5 % less than at any larger one: on an H200, in the mean of Llama-3.1-8B and
    # Qwen2.5-7B, above 4,096 of Qwen2.5-7B alone (benchmarks/gpu_sizes.py).
    288, 320, 384, 512, 640, 768, 800, 864, 928, 1024, 1152, 1248, 1280, 1344, 1536, 1568, 1760, 1792, 1888, 2016, 2048,
    2080, 2112, 2208, 2304, 2400, 2560, 2656, 2688, 2848, 2880, 3168, 3296, 3456, 3552, 3584, 3680, 3840, 4096, 4160,
    4224, 4480, 4736, 4928, 5312, 5376, 5760, 6016, 6144, 6336, 6528, 6912, 7104, 7168, 7296, 7680, 7872, 8064, 8192)


def token_sizes(max_num_tokens: int) -> list[int]:
    """Padded numbers of tokens of a step with prompts."""
    sizes = [*_TOKENS, *range(_TOKENS[-1] + 256, max_num_tokens, 256)]
    return [size for size in sizes if size < max_num_tokens] + [max_num_tokens]


def row_sizes(max_batch_size: int) -> list[int]:
    """Padded numbers of rows, of a step that decodes or of those that are sampled: close together where a step's time
    depends on them most, and a bounded number of them."""
    sizes = [1, 2, 4, *range(8, 33, 8), *range(48, 129, 16), *range(160, 257, 32), *range(320, 513, 64),
             *range(640, 1025, 128), *range(1536, 4097, 512)]
    return [size for size in sizes if size < max_batch_size] + [max_batch_size]


def padded(number: int, sizes: list[int]) -> int:
    """The first of `sizes`, which are in order, that is no less than `number`."""
    return sizes[bisect_left(sizes, number)]
