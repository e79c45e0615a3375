"""llama.cpp's own HTTP server as the package xllamacpp carries it (it ships no program): `pip install xllamacpp`.

    python benchmarks/llama_cpp_server.py MODEL.gguf --port PORT --slots 8 --context 8192 --threads 2

The options stand for llama-server's --parallel, --ctx-size (of all slots together), --threads and --no-cache-prompt.
"""

from __future__ import annotations

import argparse
import signal
import threading

import xllamacpp


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    options = xllamacpp.CommonParams()
    options.model.path = args.model
    options.port = args.port
    options.n_parallel = args.slots
    options.n_ctx = args.context
    options.cpuparams.n_threads = args.threads
    options.cpuparams_batch.n_threads = args.threads
    options.cache_prompt = False
    options.cache_ram_mib = 0
    options.warmup = True
    server = xllamacpp.Server(options)
    print(f"Ready: {server.listening_address}", flush=True)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    stop.wait()


if __name__ == "__main__":
    main()
