"""`pelton bench sweep`: every load with every prompt and output size, streaming, and the report of it."""

from __future__ import annotations

import itertools
from pathlib import Path

from pelton.bench.agenda import FixedAgenda
from pelton.bench.cell import CellSpec, default_warmup, session_of
from pelton.bench.command import measure
from pelton.bench.load.options import require
from pelton.bench.load.trace import read_trace
from pelton.bench.options import SweepOptions
from pelton.bench.prompts.trial import Content


def run_sweep(options: SweepOptions) -> int:
    """Measures the cells and writes results.json, requests.csv, cells.csv and report.html. Returns the exit status.

    Raises:
        PeltonError: wrong options, an unwritable output_dir, or the server failed; what was measured is kept.
    """
    return measure("sweep", options, FixedAgenda(sweep_specs(options), num_trials=options.num_trials))


def sweep_specs(options: SweepOptions) -> list[CellSpec]:
    """The cells, cheap ones first: what they leave of a time budget goes to the dear ones.

    Raises:
        ConfigError: stages or trace cannot be read.
    """
    loads = options.loads(options.concurrency)
    if options.trace is not None:
        trace = read_trace(Path(options.trace).expanduser())[: options.num_requests]
        prompt_tokens, output_tokens = (round(sum(sizes) / len(trace)) for sizes in (
            [r.prompt_tokens for r in trace], [max(r.output_tokens, 1) for r in trace]))
        if any(r.blocks for r in trace):
            require(options.prompt_spec.source == "synthetic", "trace", options.trace,
                    "without hash_ids where prompts are made of a file, for those say which words are alike")
        return [CellSpec(load=load, prompt_tokens=prompt_tokens, output_tokens=output_tokens,
                         is_stream=options.can_stream,
                         num_warmup=options.num_warmup or 0, trace=trace, content=Content(options.prompt_spec),
                         cancellation_delay_s=options.cancellation_delay) for load in loads]
    specs = [CellSpec(load=load, **content.fields, is_stream=options.can_stream,
                      num_warmup=default_warmup(load) if options.num_warmup is None else options.num_warmup,
                      session=session_of(options), cancellation_delay_s=options.cancellation_delay)
             for load, content in itertools.product(loads, options.contents())]
    return sorted(specs, key=_cost)


def _cost(spec: CellSpec) -> tuple[float, ...]:
    level = spec.load.concurrency or spec.load.rate or 0.0
    return level * spec.prompt_tokens, spec.prompt_tokens, level, spec.output_tokens
