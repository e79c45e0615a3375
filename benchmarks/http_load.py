"""A closed loop of streamed completions against a server, in a process of its own: one JSON line of what it saw.

    python benchmarks/http_load.py http://127.0.0.1:8000 --in-flight 32 --num-requests 64 --input-len 129

Prompts are random token ids on the completions route, all different; end-of-sequence is ignored. Whoever sends the
next request is whoever's last one has ended, so exactly `in_flight` are open until the requests run out. Every read of
a socket is stamped at once and read later, when the load is over (src/pelton/bench/client.py).
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import resource
import time
from typing import Any

import uvloop

from pelton.bench.client import Address, Client, Exchange, allow_connections
from pelton.bench.percentiles import percentile


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--in-flight", type=int, default=1)
    parser.add_argument("--num-requests", type=int, default=32)
    parser.add_argument("--input-len", type=int, default=129)
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--vocab-size", type=int, default=1000)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    allow_connections(options.in_flight)
    client = Client(Address.parse(options.url), headers={}, timeout_s=600.0)
    requests = make_requests(client, options)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        exchanges, wall_s, cpu_s = runner.run(run_closed_loop(client, requests, options.in_flight))
    print(json.dumps({**vars(options), **describe(exchanges, options.output_len), "wall_s": wall_s,
                      "tokens_per_s": len(exchanges) * options.output_len / wall_s,
                      "client_cpu_share": cpu_s / wall_s}))


def make_requests(client: Client, options: argparse.Namespace) -> list[bytes]:
    """The bytes of every request."""
    draw = random.Random(options.seed)
    fields = {"max_tokens": options.output_len, "temperature": options.temperature, "ignore_eos": True, "stream": True,
              "stream_options": {"include_usage": True}}
    return [client.build("POST", "/completions", json.dumps(
        {"prompt": draw.choices(range(options.vocab_size), k=options.input_len), **fields}).encode())
        for _ in range(options.num_requests)]


async def run_closed_loop(client: Client, requests: list[bytes], in_flight: int) -> tuple[list[Exchange], float, float]:
    """Returns the exchanges, the seconds from the first request to the last answer, and this process's CPU seconds."""
    await client.open_connections(in_flight)
    waiting = iter(requests)
    exchanges: list[Exchange] = []

    async def keep_busy() -> None:
        for request in waiting:
            exchanges.append(await client.send(request))

    gc.collect()
    gc.disable()
    began, used = time.perf_counter(), _cpu_seconds()
    await asyncio.gather(*(keep_busy() for _ in range(in_flight)))
    times = time.perf_counter() - began, _cpu_seconds() - used
    client.close()
    return exchanges, *times


def describe(exchanges: list[Exchange], output_len: int) -> dict[str, Any]:
    """Times in ms over all requests.

    Raises:
        SystemExit: a request failed, or its tokens did not come one chunk each; such times would mean nothing.
    """
    first, gaps = [], []
    for exchange in exchanges:
        response = exchange.response
        if exchange.failure or response.status != 200:
            raise SystemExit(f"a request failed: {exchange.failure or response.body[:200]!r}")
        num_events = response.body.count(b"\n\n")
        if num_events != output_len + 2:  # the last two are the usage and [DONE]
            raise SystemExit(f"{num_events - 2} chunks came for {output_len} tokens")
        if b'"completion_tokens":%d,' % output_len not in response.body:
            raise SystemExit("the server counts other tokens than were asked for")
        stamps = [stamp for stamp, _ in response.pieces]
        first.append((stamps[0] - exchange.sent_ns) / 1e6)
        gaps.append((stamps[-1] - stamps[0]) / 1e6 / max(output_len - 1, 1))
    return {"ttft_ms": _spread(first), "tpot_ms": _spread(gaps)}


def _spread(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {"p50": percentile(ordered, 50), "p95": percentile(ordered, 95), "max": ordered[-1]}


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
