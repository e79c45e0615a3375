"""What scheduling does to the time to first token: the real scheduler over a device that exists as a formula.

    python benchmarks/schedule_sim.py --in-flight 32 --input-len 914 --chunks 2048,8192

A closed loop of requests in virtual time, steps launched one ahead as by the engine's loop. A step of T tokens takes
`--fixed-ms` + T x FLOPs / `--tflops`, but at least `--eager-ms` if it holds prompt tokens (the host launches those
kernel by kernel). Defaults are those of Qwen2.5-7B in bf16 on an H200. It shows how policies differ before a device is
asked; what a device does is measured by gpu_http.py. With `--pause-ms` clients wait that long after an answer before
they send the next request.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import statistics
from types import SimpleNamespace
from typing import Any

from pelton.bench.percentiles import percentile
from pelton.config import ExecutorConfig, KvCacheConfig
from pelton.scheduler.scheduler import Scheduler
from pelton.types import Request, SamplingParams, Sequence, StepOutput


class Simulation:
    """One closed loop.

    Args:
        options: as on the command line.
        chunk: ExecutorConfig.chunked_prefill_size.
    """

    def __init__(self, options: argparse.Namespace, chunk: int):
        self.options = options
        limits = SimpleNamespace(max_batch_size=options.max_batch_size, max_seq_len=16384, max_input_len=16383,
                                 max_num_tokens=8192, tokens_per_block=64, num_blocks=20_000, vocab_size=1000)
        config = ExecutorConfig(chunked_prefill_size=chunk, kv_cache_config=KvCacheConfig(enable_block_reuse=False))
        self.scheduler = Scheduler(limits, config)
        self.now = 0.0
        self.num_steps = self.num_sent = self.num_ended = 0
        self.arrivals: list[tuple[float, int]] = []
        self.sent: dict[str, float] = {}
        self.first: dict[str, float] = {}
        self._draw = random.Random(options.seed)
        low, _, high = str(options.output_len).partition("-")
        lengths = range(int(low), int(high or low) + 1)
        self.output_lens = [lengths[number % len(lengths)] for number in range(options.num_requests)]
        self._draw.shuffle(self.output_lens)

    def send(self, at: float) -> None:
        """A client sends its next request, which the engine has a little later, if there is one left."""
        if self.num_sent < self.options.num_requests:
            heapq.heappush(self.arrivals, (at + self.options.server_ms / 1e3, self.num_sent))
            self.sent[str(self.num_sent)] = at
            self.num_sent += 1

    def run(self) -> dict[str, Any]:
        for number in range(self.options.in_flight):  # the server takes in one after the other
            self.send(number * self.options.request_ms / 1e3)
        in_flight: list[tuple[Any, float]] = []
        while self.num_ended < self.options.num_requests:
            self.take_arrivals()
            batch = self.scheduler.schedule()
            if batch is not None:
                began = max(self.now, in_flight[-1][1] if in_flight else 0.0)
                in_flight.append((batch, began + self.step_s(batch)))
                self.num_steps += 1
            if len(in_flight) > 1 or (batch is None and in_flight):
                self.complete(*in_flight.pop(0))
            elif batch is None:
                self.now = max(self.now, self.arrivals[0][0])
        first = sorted(1e3 * (self.first[key] - self.sent[key]) for key in self.sent)
        return {"ttft_p50": round(percentile(first, 50), 1), "ttft_p95": round(percentile(first, 95), 1),
                "ttft_max": round(first[-1], 1), "num_steps": self.num_steps,
                "ttft_mean": round(statistics.fmean(first), 1),
                "tokens_per_s": round(sum(self.output_lens) / self.now)}

    def take_arrivals(self) -> None:
        while self.arrivals and self.arrivals[0][0] <= self.now:
            at, number = heapq.heappop(self.arrivals)
            params = SamplingParams(max_tokens=self.output_lens[number], ignore_eos=True)
            request = Request([1] * self.options.input_len, sampling_params=params, request_id=str(number),
                              arrival_time=at + 1e-9)
            self.scheduler.validate(request)
            self.scheduler.add(Sequence(request, index=0, arrival=number, seed=0, end_ids=()))

    def complete(self, batch: Any, ends: float) -> None:
        self.now = max(self.now, ends)
        tokens = [1] * sum(batch.is_sampled)
        for output in self.scheduler.update(StepOutput(batch.step_id, batch.sampled_slots, tokens)):
            self.first.setdefault(output.request_id, self.now)
            if output.finish_reason is not None:
                self.num_ended += 1
                pause_ms = self.options.pause_ms + self._draw.random() * self.options.request_ms
                self.send(self.now + pause_ms / 1e3)

    def step_s(self, batch: Any) -> float:
        options = self.options
        flops = batch.total_tokens * options.gflop_per_token * 1e9
        ms = options.fixed_ms + 1e3 * flops / (options.tflops * 1e12)
        is_eager = batch.total_tokens > batch.num_decodes
        return max(ms, options.eager_ms if is_eager else 0.0) / 1e3


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--in-flight", type=int, default=32)
    parser.add_argument("--num-requests", type=int, help="default: max(32, 2 x in flight)")
    parser.add_argument("--input-len", type=int, default=914)
    parser.add_argument("--output-len", default="128", help="tokens of each answer, or from-to")
    parser.add_argument("--chunks", default="1024,2048,4096,8192", help="chunked_prefill_size, comma-separated")
    parser.add_argument("--max-batch-size", type=int, default=512)
    parser.add_argument("--gflop-per-token", type=float, default=13.05)
    parser.add_argument("--tflops", type=float, default=620.0)
    parser.add_argument("--fixed-ms", type=float, default=3.2)
    parser.add_argument("--eager-ms", type=float, default=4.0)
    parser.add_argument("--server-ms", type=float, default=1.5, help="from the client's send to the engine")
    parser.add_argument("--request-ms", type=float, default=0.4, help="the server's own time per request")
    parser.add_argument("--pause-ms", type=float, default=0.0, help="from an answer's end to the client's next request")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def main() -> None:
    options = make_parser().parse_args()
    options.num_requests = options.num_requests or max(32, 2 * options.in_flight)
    for chunk in map(int, options.chunks.split(",")):
        print(json.dumps({"chunk": chunk, **Simulation(options, chunk).run()}))


if __name__ == "__main__":
    main()
