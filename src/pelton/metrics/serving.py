"""What a server counts and times, one declaration each. Times are seconds from the server's door, queueing included."""

from __future__ import annotations

from typing import Protocol

from pelton.metrics.registry import Registry

OUTCOMES = ("stop", "length", "cancelled", "error", "rejected")
"""How a request ends: by itself, at its limit, its client left, a fault of ours, a fault in the request."""

_SHORT_S = (0.0005, 0.001, 0.002, 0.003, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2,
            0.3, 0.5, 1.0, 2.0, 5.0)
_FIRST_S = (0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0, 3.0,
            5.0, 10.0, 20.0, 40.0, 80.0)
_WHOLE_S = (0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 300.0,
            600.0)


class EngineStats(Protocol):
    """What is read of `pelton.engine.messages.Stats`."""

    num_running: int
    num_waiting: int
    num_blocks_used: int
    num_blocks_free: int
    num_blocks_cached: int
    num_steps: int
    num_preemptions: int
    num_prompt_tokens: int
    num_cached_tokens: int
    num_generated_tokens: int
    step_host_ms: float


class ServingMetrics:
    """The metrics of one server and its engine."""

    def __init__(self) -> None:
        self.registry = registry = Registry()
        self.requests = registry.counter(
            "pelton_requests_total", "Requests that ended, by outcome.", label="outcome", values=OUTCOMES)
        self.time_to_first_token = registry.histogram(
            "pelton_time_to_first_token_seconds", "From a request's arrival to its first token.", _FIRST_S)
        self.inter_token = registry.histogram(
            "pelton_inter_token_seconds", "Between two tokens of one completion, the first excluded.", _SHORT_S)
        self.end_to_end = registry.histogram(
            "pelton_request_seconds", "From a request's arrival to the end of its last completion.", _WHOLE_S)
        self.engine_up = registry.gauge("pelton_engine_up", "1 while the engine process lives.")
        self.running = registry.gauge("pelton_requests_running", "Sequences that take part in steps.")
        self.waiting = registry.gauge("pelton_requests_waiting", "Sequences that wait to run.")
        self.blocks_used = registry.gauge("pelton_kv_blocks_used", "KV cache blocks that running sequences hold.")
        self.blocks_free = registry.gauge(
            "pelton_kv_blocks_free", "KV cache blocks that can be taken, those with an unreferenced prefix included.")
        self.blocks_cached = registry.gauge("pelton_kv_blocks_cached", "Free KV cache blocks that still hold a prefix.")
        self.step_host = registry.gauge(
            "pelton_step_host_seconds", "Median time of the step loop's own work in recent steps.")
        self.prompt_tokens = registry.counter("pelton_prompt_tokens_total", "Prompt tokens of requests that were run.")
        self.cached_tokens = registry.counter(
            "pelton_cached_prompt_tokens_total", "Prompt tokens whose keys and values came from the prefix cache.")
        self.generated_tokens = registry.counter("pelton_generated_tokens_total", "Output tokens that counted.")
        self.steps = registry.counter("pelton_steps_total", "Steps the engine ran.")
        self.preemptions = registry.counter(
            "pelton_preemptions_total", "Times a running sequence gave its blocks to another.")

    def render(self, stats: EngineStats | None) -> bytes:
        """All metrics as Prometheus text.

        Args:
            stats: the engine's state now; None when the engine is dead: its gauges are left out, its counters stay.
        """
        self.engine_up.value = float(stats is not None)
        gauges = {self.running: "num_running", self.waiting: "num_waiting", self.blocks_used: "num_blocks_used",
                  self.blocks_free: "num_blocks_free", self.blocks_cached: "num_blocks_cached"}
        for gauge, name in gauges.items():
            gauge.value = None if stats is None else getattr(stats, name)
        self.step_host.value = None if stats is None else stats.step_host_ms / 1e3
        if stats is not None:
            counters = {self.prompt_tokens: stats.num_prompt_tokens, self.cached_tokens: stats.num_cached_tokens,
                        self.generated_tokens: stats.num_generated_tokens, self.steps: stats.num_steps,
                        self.preemptions: stats.num_preemptions}
            for counter, total in counters.items():
                counter.raise_to(total)
        return self.registry.render()
