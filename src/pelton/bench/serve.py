"""`pelton bench serve`: one prompt size at several concurrencies, without and with streaming."""

from __future__ import annotations

from pelton.bench.agenda import FixedAgenda
from pelton.bench.cell import CellSpec, default_warmup, session_of
from pelton.bench.command import measure
from pelton.bench.options import ServeOptions


def run_serve(options: ServeOptions) -> int:
    """Measures whole answers, then streamed ones, and prints a table of each. Returns the exit status.

    Raises:
        PeltonError: wrong options, or the server failed.
    """
    specs = [CellSpec(load=load, **options.contents()[0].fields,
                      num_warmup=default_warmup(load) if options.num_warmup is None else options.num_warmup,
                      is_stream=is_stream, session=session_of(options), cancellation_delay_s=options.cancellation_delay)
             for is_stream in ((False, True) if options.can_stream else (False,))
             for load in options.loads(options.concurrency)]
    return measure("serve", options, FixedAgenda(specs, num_trials=options.num_trials))
