"""Shows plans: tables for people, one JSON object for machines."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from pelton import physics
from pelton.build.plan import Plan, PlanOptions, Speed
from pelton.config import ModelConfig, to_dict
from pelton.physics import GIB, Limit

_LEDGER_ROWS = (("weights", "weights_bytes"), ("KV cache", "kv_blocks_bytes"), ("activations", "activations_bytes"),
                ("sampling state", "sampling_state_bytes"), ("graphs", "graphs_bytes"),
                ("workspace", "workspace_bytes"), ("reserve", "reserve_bytes"), ("unused", "free_bytes"))


def print_one(model: ModelConfig, options: PlanOptions, plan: Plan, console: Console | None = None) -> None:
    """Ledger, capacity and speeds of one GPU."""
    console = console or Console()
    console.print(_headline(model, options), highlight=False)
    console.print(_ledger_table(plan, options))
    if not plan.fits:
        console.print(_does_not_fit(plan), highlight=False, style="bold red")
        return
    console.print(_capacity(plan, options), highlight=False)
    console.print(_speed_table(plan))
    full = plan.full_load
    if full:
        console.print(
            f"All {plan.max_concurrency} running, requests of {plan.input_len} in / {plan.output_len} out: at most "
            f"{_short(plan.full_load_tokens_per_s)} output tok/s ({full.bound}); "
            f"{_short(plan.output_len / full.serial_s)} when reads and arithmetic do not overlap.", highlight=False)
    if _weight_read_bytes(model, options) <= plan.hardware.cache_bytes:
        console.print(f"The weights fit the last-level cache ({_size(plan.hardware.cache_bytes)}): decoding can beat "
                      "these limits, which read them from memory.", highlight=False)
    console.print("Limits from bytes and FLOPs, not forecasts. Figures of the hardware:", style="dim")
    for line in _sources(plan):
        console.print(line, style="dim", highlight=False)


def print_all(model: ModelConfig, options: PlanOptions, plans: list[Plan], console: Console | None = None) -> None:
    """One row per GPU."""
    console = console or Console()
    console.print(_headline(model, options), highlight=False)
    first = plans[0]
    table = _table(f"at most, requests of {first.input_len:,} in / {first.output_len:,} out",
                   "GPU", "GiB", "KV tokens", "at once", "tok/s, one", "TTFT ms", "tok/s, all")
    for plan in plans:
        row = [plan.hardware.name, _gib(plan.ledger.memory_bytes)]
        if not plan.fits:
            table.add_row(*row, "does not fit")
            continue
        single = next((s for s in plan.speeds if s.batch_size == 1), plan.speeds[0])
        table.add_row(*row, _short(plan.ledger.kv_tokens), str(plan.max_concurrency), _short(single.tokens_per_s),
                      _ms(single.prefill.seconds), _short(plan.full_load_tokens_per_s))
    console.print(table)
    for plan in plans:
        if not plan.fits:
            console.print(_does_not_fit(plan), highlight=False)
    console.print(f"It fits when one sequence of {first.max_seq_len:,} tokens does. tok/s of one request, and of as "
                  "many as fit at once. --gpu NAME shows the ledger, every batch size and where the figures come from.",
                  style="dim", highlight=False)


def print_json(model: ModelConfig, options: PlanOptions, plans: list[Plan]) -> None:
    print(json.dumps(as_json(model, options, plans), indent=1))


def as_json(model: ModelConfig, options: PlanOptions, plans: list[Plan]) -> dict[str, Any]:
    """All of the plans in plain JSON types; times in seconds, sizes in bytes."""
    return {
        "model": to_dict(model),
        "num_params": physics.num_params(model),
        "options": to_dict(options),
        "kv_bytes_per_token": _kv_bytes_per_token(model, options),
        "weight_read_bytes_per_step": _weight_read_bytes(model, options),
        "plans": [_plan_json(plan) for plan in plans],
    }


def _plan_json(plan: Plan) -> dict[str, Any]:
    hardware = dataclasses.asdict(plan.hardware)
    return {
        "gpu": plan.hardware.name,
        "hardware": hardware,
        "ledger": plan.ledger.to_json(),
        "fits": plan.fits,
        "remedies": list(plan.remedies),
        "max_seq_len": plan.max_seq_len,
        "input_len": plan.input_len,
        "output_len": plan.output_len,
        "max_concurrency": plan.max_concurrency,
        "max_concurrency_at_max_seq_len": plan.ledger.num_sequences(plan.max_seq_len),
        "speeds": [_speed_json(speed) for speed in plan.speeds] if plan.fits else [],
        "full_load": None if plan.full_load is None else
        {**_limit_json(plan.full_load), "output_tokens_per_s": plan.full_load_tokens_per_s},
    }


def _speed_json(speed: Speed) -> dict[str, Any]:
    return {"batch_size": speed.batch_size, "fits": speed.fits, "tokens_per_s": speed.tokens_per_s,
            "decode_step": _limit_json(speed.decode_step), "prefill": _limit_json(speed.prefill)}


def _limit_json(limit: Limit) -> dict[str, Any]:
    return {"seconds": limit.seconds, "bound": limit.bound, "read_s": limit.read_s, "compute_s": limit.compute_s}


def _headline(model: ModelConfig, options: PlanOptions) -> str:
    weights = options.weight_dtype if options.weight_dtype != "auto" else model.dtype
    ranks = f", each of {options.tp_size} ranks" if options.tp_size > 1 else ""
    return (f"{options.model}: {model.architecture}, {_short(physics.num_params(model))} parameters, {weights} "
            f"weights. A decode step reads {_size(_weight_read_bytes(model, options))} of weights{ranks}; the KV "
            f"cache takes {_kv_bytes_per_token(model, options) / 1024:g} KiB a token "
            f"({model.num_kv_heads} KV heads of {model.num_heads} heads).")


def _ledger_table(plan: Plan, options: PlanOptions) -> Table:
    per_rank = f", one of {options.tp_size} ranks" if options.tp_size > 1 else ""
    table = _table(f"{plan.hardware.name}: {_gib(plan.ledger.memory_bytes)} GiB{per_rank}", "memory", "GiB", "share")
    for label, name in _LEDGER_ROWS:
        size = getattr(plan.ledger, name)
        table.add_row(label, _gib(size), f"{size / plan.ledger.memory_bytes:.1%}")
    return table


def _capacity(plan: Plan, options: PlanOptions) -> str:
    ledger = plan.ledger
    by_memory = ledger.num_sequences(plan.input_len + plan.output_len)
    by = f" (held by --max-batch-size; memory allows {by_memory:,})" if by_memory > options.max_batch_size else ""
    return (f"KV cache: {ledger.num_blocks:,} blocks of {ledger.tokens_per_block} = {ledger.kv_tokens:,} tokens. At "
            f"once: {ledger.num_sequences(plan.max_seq_len):,} sequences of {plan.max_seq_len:,} tokens, or "
            f"{plan.max_concurrency} requests of {plan.input_len:,} in / {plan.output_len:,} out{by}.")


def _speed_table(plan: Plan) -> Table:
    table = _table(f"at most, {plan.input_len:,} in / {plan.output_len:,} out", "batch", "output tok/s", "ms a step",
                   "set by", "TTFT ms, all at once", "set by")
    for speed in plan.speeds:
        if not speed.fits:
            table.add_row(str(speed.batch_size), "does not fit")
            continue
        table.add_row(str(speed.batch_size), _short(speed.tokens_per_s), _ms(speed.decode_step.seconds),
                      speed.decode_step.bound, _ms(speed.prefill.seconds), speed.prefill.bound)
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, collapse_padding=True)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 or column == "set by" else "right", no_wrap=True)
    return table


def _does_not_fit(plan: Plan) -> str:
    ledger = plan.ledger
    if ledger.num_blocks == 0:
        have = f"{_gib(ledger.fixed_bytes)} GiB are needed before the KV cache, of {_gib(ledger.memory_bytes)}"
    else:
        have = f"the KV cache holds {ledger.kv_tokens:,} tokens"
    mend = f"would fit with {' or '.join(plan.remedies)}" if plan.remedies else "no single option makes it fit"
    return f"{plan.hardware.name}: one sequence of {plan.max_seq_len:,} tokens does not fit ({have}); {mend}"


def _sources(plan: Plan) -> list[str]:
    hardware = plan.hardware
    peaks = ", ".join(f"{kind} {rate / 1e12:,.4g}" for kind, rate in hardware.flops.items())
    return [f"  bandwidth {hardware.bandwidth / 1e12:.4g} TB/s: {hardware.sources['bandwidth']}",
            f"  peak TFLOP/s {peaks}: {hardware.sources['flops']}",
            f"  memory {_gib(hardware.memory_bytes)} GiB: {hardware.sources['memory_bytes']}"]


def _kv_bytes_per_token(model: ModelConfig, options: PlanOptions) -> int:
    return physics.kv_bytes_per_token(model, options.kv_cache_dtype, tp_size=options.tp_size)


def _weight_read_bytes(model: ModelConfig, options: PlanOptions) -> float:
    weights = physics.weight_format(model, options.weight_dtype)
    return physics.weight_read_bytes(model, weights, tp_size=options.tp_size)


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:,.3g} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.3g} MB"


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:,.1f}" if abs(num_bytes) >= GIB else f"{num_bytes / GIB:.3f}"


def _ms(seconds: float) -> str:
    ms = seconds * 1e3
    return f"{ms:,.0f}" if ms >= 100 else f"{ms:.3g}" if ms >= 0.01 else f"{ms:.5f}"


def _short(value: float | None) -> str:
    if value is None:
        return "-"
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e4, "k")):
        if value >= size:
            return f"{value / min(size, 1e3 if unit == 'k' else size):.3g} {unit}"
    return f"{value:,.0f}"
