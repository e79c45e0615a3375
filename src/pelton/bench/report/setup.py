"""How a result was measured, as names and values: for the page and for Markdown."""

from __future__ import annotations

import msgspec

from pelton.bench.compare.workload import workload_hash
from pelton.bench.counted import counted
from pelton.bench.results import RunResult, Workload

YES = {True: "yes", False: "no"}


def setup_facts(result: RunResult) -> list[tuple[str, str]]:
    """Server, model, requests, load and client, in this order."""
    return [*_server(result), *_requests(result), *_measurement(result),
            *(("not watched", reason) for reason in result.series_missing)]


def _server(result: RunResult) -> list[tuple[str, str]]:
    target, hardware, price = result.target, result.analysis.hardware, result.analysis.price_per_hour
    facts = [
        ("server", target.url),
        ("server software", " ".join(filter(None, (target.server_header, target.version))) or "not told"),
        ("hardware", "not known: figures are held against no limits" if hardware is None else
         f"{hardware.num_gpus} × {hardware.gpu}, told by the {hardware.source}"),
        ("model", target.model), ("tokenizer", target.tokenizer), ("tokenizer's SHA-256", target.tokenizer_sha256),
        ("template", counted(target.template_tokens, "token")),
        ("server reports usage", f"{YES[target.reports_usage]}; in streams {YES[target.reports_stream_usage]}")]
    return facts if price is None else [*facts, ("price per hour", f"{price:g}")]


def _requests(result: RunResult) -> list[tuple[str, str]]:
    target, workload = result.target, result.workload
    extra = msgspec.json.encode(target.extra_inputs).decode() if target.extra_inputs else "none"
    return [
        ("protocol", target.protocol), ("endpoint", target.endpoint), ("further fields of the requests", extra),
        ("output length asked by", target.output_control),
        ("prompts", f"{workload.prompts}; {'token ids' if target.sends_token_ids else 'text'}"),
        ("tokens in, out", f"{', '.join(workload.prompt_tokens)}; {', '.join(workload.output_tokens)}"),
        *_conversations(workload), ("temperature", f"{workload.temperature:g}"), ("seed", f"{workload.seed}")]


def _conversations(workload: Workload) -> list[tuple[str, str]]:
    session = workload.session
    if session is None:
        return []
    pause = f", {session.think_time_s:g} s of thought on average" if session.think_time_s else ""
    more = f"{counted(session.turn_tokens, 'token')} more in each"
    return [("conversations", f"{session.num_turns} turns, {more}{pause}")]


def _measurement(result: RunResult) -> list[tuple[str, str]]:
    workload, where = result.workload, result.environment
    warmup = "one request per slot" if workload.num_warmup is None else counted(workload.num_warmup, "request")
    return [
        ("loads", ", ".join(load.label for load in workload.loads[:12])), ("warm-up", warmup),
        ("repeats of each cell", f"{workload.num_trials}"),
        ("workload's hash", f"{workload_hash(result)} (equal for runs that were asked for the same)"),
        ("measured for", f"{result.duration_s:.1f} s"),
        ("client", f"pelton {where.pelton_version}, Python {where.python_version}, {counted(where.num_cpus, 'CPU')}"),
        ("system", where.platform), ("started", where.started_at)]
