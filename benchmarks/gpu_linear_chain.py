"""The products of one decode step of Llama-3.1-8B on one GPU, against its memory's bandwidth and against the library.

32 layers of qkv, o, gate-up and down and the head, each with weights of its own, one after the other in one CUDA graph
that is replayed; times are medians. Ours runs each product as the model does, with norm, activation and residual;
"library" is the same work by the library's products and separate kernels; "products alone" is the library without the
rest. TB/s counts the bytes of the weights.

    python benchmarks/gpu_linear_chain.py [--rows 1,8,...] [--untuned] [--search] [--output results/...json]

With --search the choices start from what was measured (or is built in) and are changed one after the other, in the
chain, keeping what is faster: products that overlap do not always do best with what is fastest by itself.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from common import environment, print_json

from pelton.kernels.linear import triton as linear
from pelton.kernels.linear.choices import LIBRARY, Choice, Choices, Measurement, Shape
from pelton.kernels.linear.prologue import Norm
from pelton.kernels.linear.tuning import Product, candidates, tune

NUM_LAYERS, HIDDEN, INNER, QKV, VOCAB = 32, 4096, 14336, 6144, 128256
READ_TB_PER_S, MATRIX_TFLOP_PER_S = 4.58, 790
"""An int64 sum over 8 GiB and a large bf16 product, on an H200."""
PRODUCTS = {
    "qkv": Product(Shape(QKV, HIDDEN), has_norm=True),
    "o": Product(Shape(HIDDEN, HIDDEN), has_residual=True),
    "gate_up": Product(Shape(2 * INNER, HIDDEN, is_gated=True), "silu", has_norm=True),
    "down": Product(Shape(HIDDEN, INNER), has_residual=True),
    "head": Product(Shape(VOCAB, HIDDEN), is_logits=True),
}
WEIGHT_BYTES = 2 * sum(p.shape.n * p.shape.k * (1 if name == "head" else NUM_LAYERS) for name, p in PRODUCTS.items())


class Chain:
    """The weights of all layers."""

    def __init__(self) -> None:
        self.weights = {name: [linear.prepare_weight(self._random(p.shape.n, p.shape.k) * 0.02)
                               for _ in range(1 if name == "head" else NUM_LAYERS)]
                        for name, p in PRODUCTS.items()}
        self.norm = Norm(torch.rand(HIDDEN, dtype=torch.bfloat16, device="cuda") + 0.5, 1e-5)

    @staticmethod
    def _random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.bfloat16, device="cuda")

    def step(self, num_rows: int, choose: Callable[[str], Choice]) -> Callable[[], None]:
        """One step's products. Attention's result is made up, all else is what the product before wrote."""
        hidden, attended = self._random(num_rows, HIDDEN), self._random(num_rows, HIDDEN)
        choices = {name: choose(name) for name in PRODUCTS}

        def product(name: str, layer: int, x: torch.Tensor, **options: Any) -> torch.Tensor:
            return linear.run(choices[name], x, self.weights[name][layer], **options)

        def run() -> None:
            for layer in range(NUM_LAYERS):
                product("qkv", layer, hidden, norm=self.norm)
                product("o", layer, attended, residual=hidden)
                inner = product("gate_up", layer, hidden, norm=self.norm, act="silu")
                product("down", layer, inner, residual=hidden)
            product("head", 0, hidden, out_dtype=torch.float32)

        return run

    def products_alone(self, num_rows: int) -> Callable[[], None]:
        hidden, inner = self._random(num_rows, HIDDEN), self._random(num_rows, INNER)

        def run() -> None:
            for layer in range(NUM_LAYERS):
                for name in ("qkv", "o", "gate_up"):
                    F.linear(hidden, self.weights[name][layer].data)
                F.linear(inner, self.weights["down"][layer].data)
            F.linear(hidden, self.weights["head"][0].data)

        return run


def milliseconds(run: Callable[[], None], num_replays: int = 15) -> float:
    """Median time of a CUDA graph of `run`."""
    stream, graph, times = torch.cuda.Stream(), torch.cuda.CUDAGraph(), []
    with torch.cuda.stream(stream):
        run()
        with torch.cuda.graph(graph, stream=stream):
            run()
        for index in range(num_replays + 3):
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            stop.record()
            stop.synchronize()
            if index >= 3:
                times.append(start.elapsed_time(stop))
    return statistics.median(times)


def _describe(choice: Choice) -> str:
    return f"{choice.kernel} {choice.config}{'' if choice.fuses_norm else ', norm apart'}"


def search(chain: Chain, num_rows: int, start: dict[str, Choice],
           capability: int) -> tuple[dict[str, Choice], list[str]]:
    """Choices that make the chain faster than `start` does, and a line for each that was tried.

    A candidate must win twice against what it would replace, measured in turn: a GPU at its power limit slows down.
    """
    chosen, told = dict(start), []

    def time_chain(choices: dict[str, Choice]) -> float:
        return milliseconds(chain.step(num_rows, lambda name: choices[name]), num_replays=7)

    for name, product in PRODUCTS.items():
        for candidate in candidates(product.shape, num_rows, capability, has_norm=product.has_norm):
            if candidate == chosen[name]:
                continue
            pairs = [(time_chain(chosen), time_chain({**chosen, name: candidate})) for _ in range(2)]
            told.append(f"{name}: {pairs[0][0]:.3f} {pairs[0][1]:.3f}, {pairs[1][0]:.3f} {pairs[1][1]:.3f} ms with "
                        f"{_describe(candidate)}")
            if all(other < 0.998 * now for now, other in pairs):
                chosen[name] = candidate
    return chosen, told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1,8,16,32,64,128,256")
    parser.add_argument("--untuned", action="store_true", help="run the built-in choices")
    parser.add_argument("--search", action="store_true", help="change the choices by what the chain says")
    parser.add_argument("--output")
    args = parser.parse_args()
    rows = [int(part) for part in args.rows.split(",")]
    device = torch.device("cuda", torch.cuda.current_device())
    capability = torch.cuda.get_device_capability(device)
    measured: list[Measurement] = []
    start = time.perf_counter()
    if not args.untuned:
        measured = tune(list(PRODUCTS.values()), rows, device=device, read_tb_per_s=READ_TB_PER_S,
                        matrix_tflop_per_s=MATRIX_TFLOP_PER_S)
        for m in measured:
            cut = " ".join(f"{key}={value}" for key, value in m.config.items())
            print(f"{m.n:>7} x {m.k:<6} {m.num_rows:>4} rows {m.us:>7.1f} us {m.tb_per_s:>5.2f} TB/s "
                  f"{m.share_of_limit:>4.0%} {m.kernel}{'' if m.fuses_norm else ', norm apart'} {cut}")
    tune_seconds = time.perf_counter() - start
    print(f"tuning took {tune_seconds:.1f} s")
    choices, chain, records = Choices(measured), Chain(), []
    print(f"{'rows':>5} {'ms':>7} {'TB/s':>6} {'of limit':>9} {'library ms':>11} {'products alone ms':>18}")
    for num_rows in rows:
        chosen = {name: choices.choose(p.shape, num_rows, 10 * capability[0] + capability[1])
                  for name, p in PRODUCTS.items()}
        told: list[str] = []
        if args.search:
            chosen, told = search(chain, num_rows, chosen, 10 * capability[0] + capability[1])
            print("\n".join(told))
        ours = milliseconds(chain.step(num_rows, lambda name, chosen=chosen: chosen[name]))
        library = milliseconds(chain.step(num_rows, lambda _: LIBRARY))
        alone = milliseconds(chain.products_alone(num_rows))
        tb_per_s = WEIGHT_BYTES / ours / 1e9
        print(f"{num_rows:>5} {ours:>7.3f} {tb_per_s:>6.2f} {tb_per_s / READ_TB_PER_S:>9.0%} {library:>11.3f} "
              f"{alone:>18.3f}", flush=True)
        records.append({"rows": num_rows, "ms": ours, "tb_per_s": tb_per_s, "library_ms": library,
                        "products_alone_ms": alone, "searched": told,
                        "choices": {name: _describe(choice) for name, choice in chosen.items()}})
    print_json({"benchmark": "gpu_linear_chain", "gpu": torch.cuda.get_device_name(device), **environment(),
                "tune_seconds": tune_seconds, "records": records,
                "tuning": [m.to_json() for m in measured]}, args.output)


if __name__ == "__main__":
    main()
