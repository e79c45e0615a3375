"""What a person sees on standard error while a benchmark runs: a line that is drawn again, or plain lines now and then.

What cannot be written, as on a full disk, is left out from then on: no measurement ends for it.

The client only files what ended. A thread of its own reads the answers and draws, twice a second in a terminal, in
steps of a tenth of a millisecond; a slow terminal keeps it waiting and not the client. A drawing library would hold the
interpreter for milliseconds a frame, and stamps would wait for it.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TextIO

from pelton.bench.cell import CellSpec
from pelton.bench.client import Exchange, now_ns
from pelton.bench.glimpse import is_answer, latency_s, num_tokens, ttft_ms
from pelton.bench.results import CellResult, Distribution, TargetInfo
from pelton.bench.workers.messages import Pulse

DRAW_S, PLAIN_S = 0.5, 10.0
BAR_WIDTH = 10
NUM_AT_ONCE = 16  # answers read before the client's thread may go on: a tenth of a millisecond
NUM_RECENT = 500  # first tokens over which the median is shown
LEAST_SPAN_S = 2.0  # over which rates are taken, and at least twice as long as a request takes


class LiveCell:
    """What is known of the running trial before its records are made."""

    def __init__(self, label: str, *, num_requests: int | None = None, duration_s: float | None = None,
                 start_ns: int = 0) -> None:
        self.label = label
        self.num_requests, self.duration_s, self.start_ns = num_requests, duration_s, start_ns
        self.num_ended = self.num_failed = 0
        # The one thing both threads touch; its ends are safe.
        self._pending: deque[Exchange | tuple[int, Pulse]] = deque()
        self._in_flight_elsewhere: dict[int, int] = {}
        self._ttfts_ms: deque[float] = deque(maxlen=NUM_RECENT)
        self._ends: deque[tuple[int, int]] = deque()  # (end, output tokens) within the span of the rates
        self._latency_s = 0.0

    def add(self, exchange: Exchange) -> None:
        """Files a measured request that has ended; for the client's thread."""
        self._pending.append(exchange)

    def add_elsewhere(self, worker: int, pulse: Pulse) -> None:
        """Files what another process saw of its requests."""
        self._pending.append((worker, pulse))

    def read(self, at_ns: int) -> None:
        """Takes in what was filed up to now."""
        for number in range(len(self._pending)):
            if number % NUM_AT_ONCE == 0:
                time.sleep(0)  # lets the client go first
            filed = self._pending.popleft()
            if isinstance(filed, Exchange):
                self._take(filed)
            else:
                self._take_pulse(*filed)
        oldest = at_ns - round(self.span_s * 1e9)
        while self._ends and self._ends[0][0] < oldest:
            self._ends.popleft()

    def _take(self, exchange: Exchange) -> None:
        self.num_ended += 1
        if not is_answer(exchange):
            self.num_failed += not exchange.was_cancelled
            return
        self._blend(latency_s(exchange))
        self._ends.append((exchange.end_ns, num_tokens(exchange)))
        if (first_ms := ttft_ms(exchange)) is not None:
            self._ttfts_ms.append(first_ms)

    def _take_pulse(self, worker: int, pulse: Pulse) -> None:
        self.num_ended += pulse.num_ended
        self.num_failed += pulse.num_failed
        self._in_flight_elsewhere[worker] = pulse.num_in_flight
        if pulse.num_ended > pulse.num_failed:
            self._blend(pulse.latency_s)
            self._ends.append((pulse.at_ns, pulse.num_tokens))
        self._ttfts_ms.extend(pulse.ttfts_ms)

    def _blend(self, latency_s: float) -> None:
        self._latency_s = 0.9 * self._latency_s + 0.1 * latency_s if self._latency_s else latency_s

    @property
    def span_s(self) -> float:
        return max(LEAST_SPAN_S, 2 * self._latency_s)

    def line(self, at_ns: int, *, num_in_flight: int | None = None) -> str:
        """The state in one line: progress, rates, first tokens, requests in flight, failures, time left."""
        elapsed_s = max((at_ns - self.start_ns) / 1e9, 1e-9)
        parts = [f"{self._bar(elapsed_s)} {self.label}"]
        span_s = min(self.span_s, elapsed_s)
        if self._ends:
            parts.append(f"{sum(n for _, n in self._ends) / span_s:,.0f} tokens/s")
        if self._ttfts_ms:
            parts.append(f"TTFT {statistics.median(self._ttfts_ms):,.1f} ms")
        if self._in_flight_elsewhere:
            num_in_flight = sum(self._in_flight_elsewhere.values())
        if num_in_flight is not None:
            parts.append(f"{num_in_flight} in flight")
        if self.num_failed:
            parts.append(f"{self.num_failed} failed")
        left_s = self._left_s(elapsed_s)
        if left_s is not None:
            parts.append(f"{_clock(left_s)} left")
        return " · ".join(parts)

    def _bar(self, elapsed_s: float) -> str:
        if self.num_requests:
            share, count = self.num_ended / self.num_requests, f"{self.num_ended}/{self.num_requests}"
        else:
            share, count = elapsed_s / self.duration_s if self.duration_s else 0.0, f"{self.num_ended}"
        filled = min(int(BAR_WIDTH * share), BAR_WIDTH)
        return "█" * filled + "░" * (BAR_WIDTH - filled) + f" {count}"

    def _left_s(self, elapsed_s: float) -> float | None:
        """Seconds to the end of the trial, as it went so far."""
        found = []
        if self.duration_s is not None:
            found.append(self.duration_s - elapsed_s)
        if self.num_requests and self.num_ended:
            found.append((self.num_requests - self.num_ended) * elapsed_s / self.num_ended)
        return max(min(found), 0.0) if found else None


class Progress:
    """Draws in a terminal, writes a plain line every ten seconds elsewhere; a silent one does nothing."""

    def __init__(self, *, is_silent: bool = False, out: TextIO | None = None) -> None:
        self._out = sys.stderr if out is None else out
        self._is_silent = is_silent
        self._is_terminal = self._out.isatty()
        self._num_cells = self._cell_number = 0
        self._cell: LiveCell | None = None
        self._in_flight: Callable[[], int] | None = None
        self._lock = threading.Lock()  # over what is written, and over who reads the cell
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, num_cells: int, target: TargetInfo, *, in_flight: Callable[[], int] | None = None) -> None:
        """`in_flight` tells how many requests this process has sent and not got back."""
        self._num_cells, self._in_flight = num_cells, in_flight
        self._print(f"{target.model} at {target.url}, {target.endpoint}; the template takes {target.template_tokens} "
                    "tokens")
        if not self._is_silent:
            self._thread = threading.Thread(target=self._keep_drawing, name="progress", daemon=True)
            self._thread.start()

    def cell_started(self, spec: CellSpec) -> None:
        self._cell_number += 1
        label = f"cell {self._cell_number}/{max(self._num_cells, self._cell_number)}: {spec.id}"
        load = spec.load
        self._cell = LiveCell(label, num_requests=load.num_requests, duration_s=load.duration_s or load.stages_s,
                              start_ns=now_ns())

    def request_ended(self, exchange: Exchange) -> None:
        """Files a measured request; what it says is read by the thread that draws."""
        if self._cell is not None and self._thread is not None:
            self._cell.add(exchange)

    def pulse(self, worker: int, pulse: Pulse) -> None:
        """Files what another process saw of its requests since it last told."""
        if self._cell is not None and self._thread is not None:
            self._cell.add_elsewhere(worker, pulse)

    def cell_ended(self, cell: CellResult) -> None:
        ttft, latency = cell.distribution("ttft"), cell.distribution("e2e_latency")
        parts = [f"{cell.id:<18}"]
        if ttft is not None:
            parts.append(f"TTFT {_percentiles(ttft)}")
        elif latency is not None:
            parts.append(f"latency {_percentiles(latency)}")
        parts.append(f"{cell.value('output_throughput') or 0.0:,.1f} tokens/s")
        if cell.errors:
            parts.append(f"{sum(cell.errors.values())} failed")
        if cell.stop_reason:
            parts.append(cell.stop_reason)
        self._cell = None
        self._print("  ".join(parts))

    def say(self, line: str) -> None:
        """Writes a line that stays."""
        self._print(line)

    def stop(self) -> None:
        """Ends the drawing and clears the line."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._is_terminal:
            self._write("\r\x1b[K")

    def draw(self) -> None:
        """Shows the state now."""
        cell = self._cell
        if cell is None:
            return
        with self._lock:
            at_ns = now_ns()
            cell.read(at_ns)
            line = cell.line(at_ns, num_in_flight=None if self._in_flight is None else self._in_flight())
            if cell is not self._cell:  # it ended meanwhile, and its result stands there
                return
            if self._is_terminal:
                width = shutil.get_terminal_size().columns - 1
                self._write(f"\r\x1b[K{line[:width]}")
            else:
                self._write(f"{line}\n")

    def _keep_drawing(self) -> None:
        while not self._ended.wait(DRAW_S if self._is_terminal else PLAIN_S):
            self.draw()

    def _print(self, line: str) -> None:
        with self._lock:
            self._write(f"\r\x1b[K{line}\n" if self._is_terminal else f"{line}\n")

    def _write(self, text: str) -> None:
        if self._is_silent:
            return
        try:
            self._out.write(text)
            self._out.flush()
        except OSError:
            self._is_silent = True


def _percentiles(found: Distribution) -> str:
    return f"P50 {found.p50:.1f} ms" + ("" if found.p95 is None else f", P95 {found.p95:.1f} ms")


def _clock(seconds: float) -> str:
    """75 s as 1:15; under a minute in seconds."""
    return f"{seconds:.0f} s" if seconds < 59.5 else f"{round(seconds) // 60}:{round(seconds) % 60:02d} min"
