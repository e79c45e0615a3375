"""Does a request's text depend on what else is in the batch, and what would it cost if it never did? On one GPU.

- logits: one decode step of one sequence, alone and in batches, from the same cache: largest difference of its logits.
- text: greedy output of sequences alone and 64 at a time, and after how many tokens the two part.
- products: the chain of gpu_linear_chain.py with one fixed kernel per product for every number of rows (always 64 rows
  in the tensor-core product, always the same cut of K) against the choices that serve each number of rows best, and
  whether the fixed one gives a row the same bits whatever its neighbours.
- attention: decode attention cut into pieces of a fixed number of tokens against shares made for the batch.

    python benchmarks/gpu_batch_invariance.py [--only logits,text,products,attention] [--output results/...json]

Weights are random (Llama-3.1-8B's shape, bf16). Prints one JSON line.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from common import environment, print_json
from gpu_linear_chain import PRODUCTS, Chain, milliseconds

from pelton.build.limits import resolve_limits
from pelton.checkpoint.hf_config import load_model_config
from pelton.config import BuildConfig, ExecutorConfig, KvCacheConfig
from pelton.engine.assemble import loop_over
from pelton.engine.executor import Executor
from pelton.kernels.attention import triton as attention
from pelton.kernels.attention.metadata import AttentionMetadata
from pelton.kernels.attention.triton_decode import WORK_WIDTH
from pelton.kernels.gpu_features import gpu_features
from pelton.kernels.linear import triton as linear
from pelton.kernels.linear.choices import Choice, Choices
from pelton.kernels.linear.stream import StreamConfig
from pelton.runner.runner import Runner
from pelton.types import Batch, Request, SamplingParams, SlotInit

PARTS = ("logits", "text", "products", "attention")
BATCH_SIZES = (1, 2, 8, 16, 32, 64)
PRODUCT_ROWS = (1, 8, 64)
PROMPT, NUM_NEW, TOKENS_PER_BLOCK = 128, 128, 64
GREEDY = SamplingParams(temperature=0.0, max_tokens=NUM_NEW, ignore_eos=True, detokenize=False)
FIXED = {  # one cut of N and K per product; the norm apart, as each program's own part of it would be cut otherwise
    "qkv": StreamConfig(1, 256, 3, num_splits=2), "o": StreamConfig(1, 256, 3, num_splits=2),
    "gate_up": StreamConfig(2, 128, 3, num_splits=1), "down": StreamConfig(1, 256, 3, num_splits=2),
    "head": StreamConfig(2, 128, 2, num_splits=1),
}
PIECE_TOKENS = 512
"""Keys that one program of fixed-split attention reads, whatever the batch."""


class Model:
    """Llama-3.1-8B's shape on random weights."""

    def __init__(self) -> None:
        self.config = load_model_config(Path(__file__).parent / "shapes" / "llama-3.1-8b")
        build = BuildConfig(max_batch_size=64, max_seq_len=1024, max_num_tokens=8192,
                            tokens_per_block=TOKENS_PER_BLOCK)
        self.run_config = ExecutorConfig(device="cuda", kv_cache_config=KvCacheConfig(max_blocks=1024,
                                                                                      enable_block_reuse=False))
        self.runner = Runner.from_config(self.config, resolve_limits(build, self.config), self.run_config)
        draw = random.Random(0)
        self.prompts = [draw.choices(range(self.config.vocab_size), k=PROMPT) for _ in range(64)]

    def logits(self) -> Iterator[dict[str, Any]]:
        """Every sequence is prefilled alone, so that the cache is the same; only the decode step differs."""
        per_sequence = PROMPT // TOKENS_PER_BLOCK + 1
        for slot, prompt in enumerate(self.prompts):
            init = SlotInit(slot, prompt, PROMPT, list(range(slot * per_sequence, (slot + 1) * per_sequence)), GREEDY,
                            0, ())
            step = self.runner.forward(Batch(slot, [slot], [0], [PROMPT], [True], 0, [init], [], []))
            self.runner.sample(step, None)
            step.result()
        alone: list[torch.Tensor] = []
        for size in BATCH_SIZES:
            rows = []
            for first in range(0, 64, size):
                slots = list(range(first, first + size))
                # Without `sample` the slots' last tokens stay, and the step can be repeated.
                step = self.runner.forward(Batch(64 + first, slots, [PROMPT] * size, [1] * size, [True] * size, size,
                                                 [], [], []))
                torch.cuda.synchronize()
                rows.append(step.logits.clone())
            logits = torch.cat(rows)
            alone = alone or [logits]
            differ = (logits - alone[0]).abs()
            yield {"batch": size, "rows_equal": int((differ.amax(1) == 0).sum()), "max_abs": float(differ.max()),
                   "rms": float(differ.square().mean().sqrt()), "logits_std": float(alone[0].std()),
                   "same_best": int((logits.argmax(1) == alone[0].argmax(1)).sum())}
        self.runner.forget(list(range(64)))

    def text(self) -> dict[str, Any]:
        texts: list[list[list[int]]] = []
        with Executor(loop_over(self.runner, self.run_config)) as executor:
            for at_once in (1, 64, 64):
                tokens: dict[str, list[int]] = {}
                num = 8 if at_once == 1 else 64
                for first in range(0, num, at_once):
                    requests = [Request(prompt, sampling_params=GREEDY)
                                for prompt in self.prompts[first:first + at_once]]
                    tokens |= {request.request_id: [] for request in requests}
                    executor.run(requests, lambda out, tokens=tokens: tokens[out.request_id].extend(out.token_ids))
                texts.append(list(tokens.values()))
        parted = [next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b), NUM_NEW)
                  for ours, theirs in zip(texts[0], texts[1], strict=False)]
        return {"compared": len(parted), "output_tokens": NUM_NEW, "parted_after": sorted(parted),
                "median": statistics.median(parted), "never_parted": parted.count(NUM_NEW),
                "equal_of_64_when_repeated": sum(a == b for a, b in zip(texts[1], texts[2], strict=True))}


def products() -> Iterator[dict[str, Any]]:
    """The input always has 64 rows in the fixed chain: the tensor cores' shape, and so the order of adding, is one."""
    capability = gpu_features(torch.device("cuda", 0)).capability
    chain, chosen = Chain(), Choices()
    fixed = milliseconds(chain.step(64, lambda name: Choice(FIXED[name], fuses_norm=False)))
    for size in PRODUCT_ROWS:
        best = milliseconds(chain.step(size, lambda name, size=size: chosen.choose(PRODUCTS[name].shape, size,
                                                                                   capability)))
        few = milliseconds(chain.step(size, lambda name: Choice(FIXED[name], fuses_norm=False)))
        yield {"rows": size, "chosen_ms": best, "fixed_64_rows_ms": fixed, "fixed_cut_of_k_ms": few,
               "same_bits": all(_same_bits(chain, name, size) for name in PRODUCTS)}


def _same_bits(chain: Chain, name: str, num_rows: int) -> bool:
    """Whether the fixed cut of K alone, with a tensor-core product as narrow as the rows allow, gives the same bits."""
    x = torch.randn(64, PRODUCTS[name].shape.k, device="cuda").bfloat16()
    weight, act = chain.weights[name][0], PRODUCTS[name].activation
    choice = Choice(FIXED[name], fuses_norm=False)
    whole = linear.run(choice, x, weight, act=act)
    return all(linear.run(choice, x[first:first + num_rows].contiguous(), weight, act=act).equal(
        whole[first:first + num_rows]) for first in range(0, 64, num_rows))


def fixed_plan(meta: AttentionMetadata, pool: torch.Tensor, num_heads: int,
               config: attention.DecodeConfig) -> attention.Plan:
    """Pieces of PIECE_TOKENS, each a program of its own; rows of equal length."""
    shape = attention.Shape.of(pool, num_heads)
    share, seq_len, num_rows = PIECE_TOKENS // config.tile, meta.seq_lens_host[0], len(meta.seq_lens_host)
    num_pieces = -(-seq_len // PIECE_TOKENS)
    # A negative share says that a program serves one (row, head) alone.
    work = torch.tensor([[row, head, piece * share, -share, seq_len] + [0] * (WORK_WIDTH - 5) for row in range(num_rows)
                         for head in range(shape.num_kv_heads) for piece in range(num_pieces)], dtype=torch.int32)
    sums = torch.empty(2 * len(work), shape.group, shape.head_dim, device="cuda")
    stats = torch.empty(2 * len(work), 2, shape.group, device="cuda")
    counters = torch.zeros(num_rows * shape.num_kv_heads, dtype=torch.int32, device="cuda")
    decode = attention.DecodePlan(num_rows, config, work.cuda(), counters, sums, stats)
    return attention.Plan(meta, shape, 0, decode, None)


def attend() -> Iterator[dict[str, Any]]:
    num_heads, num_kv_heads, head_dim, num_layers = 32, 8, 128, 32
    for seq_len in (192, 1024, 4096):
        per_row = -(-seq_len // TOKENS_PER_BLOCK)
        pool = torch.randn(64 * per_row, num_layers if seq_len < 4096 else 8, 2, num_kv_heads, TOKENS_PER_BLOCK,
                           head_dim, device="cuda", dtype=torch.bfloat16)
        queries = torch.randn(64, num_heads, head_dim, device="cuda").bfloat16()
        first_rows = []
        for size in (1, 8, 64):
            meta = AttentionMetadata.from_rows([seq_len - 1] * size, [1] * size,
                                               [list(range(row * per_row, (row + 1) * per_row)) for row in range(size)],
                                               num_decodes=size, tokens_per_block=TOKENS_PER_BLOCK, device="cuda")
            shape = attention.Shape.of(pool, num_heads)
            config = attention.decode_config_for(shape, gpu_features(pool.device), 1)
            plans = {"shares": attention.plan(meta, pool, num_heads=num_heads, window=None),
                     "pieces": fixed_plan(meta, pool, num_heads, config)}
            times, outs = {}, {}
            for name, plan in plans.items():
                def layer(index: int, plan: attention.Plan = plan, q: torch.Tensor = queries[:size],
                          pool: torch.Tensor = pool) -> torch.Tensor:
                    return attention.attend(q, None, pool, index, plan, scale=head_dim**-0.5)

                times[name] = milliseconds(lambda layer=layer, n=pool.shape[1]: [layer(i) for i in range(n)]) \
                    / pool.shape[1]
                outs[name] = layer(0)
            error = (outs["pieces"].float() - outs["shares"].float()).norm() / outs["shares"].float().norm()
            assert float(error) < 1e-2, "fixed pieces compute something else"
            first_rows.append({name: out[0].clone() for name, out in outs.items()})
            yield {"batch": size, "seq_len": seq_len, "shares_us": 1e3 * times["shares"],
                   "pieces_us": 1e3 * times["pieces"],
                   **{f"{name}_equal_to_batch_1": bool(first_rows[-1][name].equal(first_rows[0][name]))
                      for name in plans}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--output")
    options = parser.parse_args()
    parts, records = options.only.split(","), {}
    with torch.inference_mode():
        if "products" in parts:
            records["products"] = list(products())
        if "attention" in parts:
            records["attention"] = list(attend())
    torch.cuda.empty_cache()
    if {"logits", "text"} & set(parts):
        model = Model()
        if "logits" in parts:
            records["logits"] = list(model.logits())
        if "text" in parts:
            records["text"] = model.text()
    print_json({"benchmark": "gpu_batch_invariance", "gpu": torch.cuda.get_device_name(), **records,
                "environment": environment()}, options.output)


if __name__ == "__main__":
    main()
