"""Launches every small kernel of the GPU path on random inputs, for NVIDIA's compute-sanitizer to watch.

    compute-sanitizer --tool memcheck --error-exitcode 9 python scripts/sanitize.py
    compute-sanitizer --tool racecheck --error-exitcode 9 python scripts/sanitize.py --only linear,norm
    compute-sanitizer --tool initcheck ...

The shapes are small and odd, since the tool slows a kernel down a hundred times; results are compared with the
references, so that what is watched is what runs. Memory goes through cudaMalloc one tensor at a time: torch's cache
would hide a read past the end of one tensor in the next.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator

os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"

import torch

from pelton.kernels.activation import reference as activation_reference
from pelton.kernels.activation import triton as activation
from pelton.kernels.attention import reference as attention_reference
from pelton.kernels.attention import triton as attention
from pelton.kernels.attention.metadata import AttentionMetadata
from pelton.kernels.gpu_features import gpu_features
from pelton.kernels.linear import reference as linear_reference
from pelton.kernels.linear import triton as linear
from pelton.kernels.linear.choices import Shape, bucket_of, default_choice
from pelton.kernels.linear.prologue import Norm
from pelton.kernels.linear.tuning import candidates
from pelton.kernels.norm import reference as norm_reference
from pelton.kernels.norm import triton as norm
from pelton.kernels.rotary import triton as rotary
from pelton.kernels.sampling import triton as sampler
from pelton.kernels.sampling.state import SlotParams
from pelton.types import SamplingParams

VOCAB = 4500
_LIMIT = {torch.bfloat16: 2e-2, torch.float32: 1e-5}


def random(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(shape, device="cuda").to(dtype)


def check(name: str, got: torch.Tensor, want: torch.Tensor) -> None:
    error = float((got.double() - want.double()).norm() / want.double().norm())
    if not error <= _LIMIT[got.dtype]:
        raise SystemExit(f"{name}: relative error {error}")


def linears() -> None:
    """Every kernel that could be chosen, fused and not, with tiles and steps along K that do not divide the shape."""
    capability = gpu_features(torch.device("cuda", torch.cuda.current_device())).capability
    for num_rows, (n, k, act) in ((rows, shape) for rows in (1, 5, 13, 40)
                                  for shape in ((200, 328, None), (2 * 136, 264, "silu"))):
        shape = Shape(n, k, is_gated=act is not None)
        bucket = bucket_of(num_rows)
        for choice in {default_choice(shape, bucket, capability), *candidates(shape, bucket, capability)}:
            x, weight, bias = random(num_rows, k), random(n, k) / k**0.5, random(n)
            pre, residual = Norm(random(k).abs() + 0.5, 1e-5), random(num_rows, n // 2 if act else n)
            got = linear.run(choice, x, linear.prepare_weight(weight), bias, norm=pre, act=act,
                             residual=residual.clone())
            want = linear_reference.linear(x.float(), weight.float(), bias.float(), norm=Norm(pre.weight.float(), 1e-5),
                                           act=act, residual=residual.float())
            check(f"{num_rows} rows, {shape}, {choice}", got, want)


def norms() -> None:
    x, residual, weight = random(3, 328), random(3, 328), random(328)
    reference = norm_reference.prepare_weight(weight, 1.0)
    check("norm", norm.rms_norm(x, norm.prepare_weight(weight, 1.0), 1e-5), norm_reference.rms_norm(x, reference, 1e-5))
    want = norm_reference.add_rms_norm(x, residual, reference, 1e-5)
    for got, expected in zip(norm.add_rms_norm(x.clone(), residual.clone(), norm.prepare_weight(weight, 1.0), 1e-5),
                             want, strict=True):
        check("add norm", got, expected)


def activations() -> None:
    for kind in ("silu", "gelu", "gelu_tanh"):
        gate_up = random(3, 2 * 1100)
        check(kind, activation.act_mul(gate_up, kind), activation_reference.act_mul(gate_up, kind))


def attentions() -> None:
    """With rotary and the write into the cache, decodes and prompts, with and without a window."""
    tables = [[2, 0], [1, 3], [5, 4], [7, 6]]
    meta = AttentionMetadata.from_rows([20, 0, 0, 9], [1, 1, 30, 8], tables, num_decodes=2, tokens_per_block=16,
                                       device="cuda")
    angles = torch.rand(40, 20, device="cuda")
    for window in (None, 7):
        pool, qkv = random(8, 2, 2, 2, 16, 80), random(40, 10 * 80)
        q, kv = rotary.rotate_and_store(qkv, rotary.prepare_angles(angles.cos(), angles.sin()), pool, 1, meta,
                                        num_heads=6)
        got, want = (op.attend(q, kv, pool, 1, op.plan(meta, pool, num_heads=6, window=window), scale=0.1)
                     for op in (attention, attention_reference))
        check(f"attention, window {window}", got, want)
    rotations()


def rotations() -> None:
    """Decodes whose attention rotates and writes the new keys itself."""
    meta = AttentionMetadata.from_rows([20, 0, 40], [1, 1, 1], [[2, 0, 6], [1, 3, 8], [5, 4, 7]], num_decodes=3,
                                       tokens_per_block=16, device="cuda")
    angles = torch.rand(3, 32, device="cuda")
    pool, qkv = random(9, 2, 2, 2, 16, 64), random(3, 12 * 64)
    prepared, other = rotary.prepare_angles(angles.cos(), angles.sin()), pool.clone()
    got, want = (op.rotate_and_attend(qkv.clone(), prepared, cache, 1, op.plan(meta, cache, num_heads=8, window=None),
                                      num_heads=8, scale=0.1)
                 for op, cache in ((attention, pool), (attention_reference, other)))
    check("attention with rotation", got, want)
    check("keys and values written", pool, other)


def samplings() -> None:
    params = [SamplingParams(temperature=0.0), SamplingParams(), SamplingParams(top_k=9),
              SamplingParams(top_p=0.8, min_p=0.01), SamplingParams(repetition_penalty=1.3)]
    state = SlotParams(len(params) + 2, VOCAB, torch.device("cuda", torch.cuda.current_device()))
    slots = torch.arange(2, 2 + len(params), device="cuda")
    state.params.index_copy_(0, slots, torch.from_numpy(state.pack(params)).cuda())
    rows = state.rows(slots, torch.arange(len(params), dtype=torch.int32, device="cuda"))
    logits = random(len(params), VOCAB, dtype=torch.float32)
    places = torch.tensor([5, VOCAB + 6], device="cuda")  # token 5 of row 0, token 6 of row 1
    addends = (places, torch.full((2,), float("-inf"), device="cuda"))
    sampler.adjust(logits, rows, addends=addends, has_penalties=True)
    greedy = logits[0].argmax()
    for truncates in (False, True):
        tokens = sampler.sample(logits, rows, truncates=truncates)
        assert tokens[0] == greedy
        assert bool(((tokens >= 0) & (tokens < VOCAB)).all())
    ids, values, ranks = sampler.logprobs(logits, torch.arange(len(params), device="cuda"), tokens, 5)
    check("log-probabilities", values[:, 0], logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0])
    assert bool((ids[:, 0] == tokens).all())
    assert bool((ranks >= 1).all())


PARTS: dict[str, Callable[[], None]] = {"linear": linears, "norm": norms, "activation": activations,
                                        "attention": attentions, "sampling": samplings}


def chosen() -> Iterator[str]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas between")
    return iter(parser.parse_args().only.split(","))


if __name__ == "__main__":
    torch.manual_seed(0)
    for part in chosen():
        PARTS[part]()
        torch.cuda.synchronize()
        print(f"{part}: done", flush=True)
