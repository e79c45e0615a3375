"""`pelton bench sweep`: every concurrency with every prompt size, streaming, and the report of it."""

from __future__ import annotations

from pelton.bench.cell import CellSpec, closed
from pelton.bench.command import measure
from pelton.bench.options import SweepOptions


def run_sweep(options: SweepOptions) -> int:
    """Measures the cells, cheap ones first, and writes results.json, requests.csv, cells.csv and report.html.

    Raises:
        PeltonError: wrong options, an unwritable output_dir, or the server failed; what was measured is kept.
    """
    pairs = sorted((concurrency * prompt_tokens, prompt_tokens, concurrency)
                   for concurrency in options.concurrency for prompt_tokens in options.prompt_tokens)
    # Cheap cells first: what they leave of a time budget goes to the dear ones.
    specs = [CellSpec(load=closed(concurrency, options.num_requests), prompt_tokens=prompt_tokens,
                      output_tokens=options.output_tokens, is_stream=True,
                      num_warmup=concurrency if options.num_warmup is None else options.num_warmup)
             for _, prompt_tokens, concurrency in pairs]
    return measure("sweep", options, specs)
