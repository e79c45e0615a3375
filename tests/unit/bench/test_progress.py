import errno
import io
import threading

import pytest
from helpers.bench import TARGET, later, request, result, spec

from pelton.bench.client import Exchange, Failure
from pelton.bench.framing import Response
from pelton.bench.progress import LiveCell, Progress
from pelton.bench.results import LoadSpec
from pelton.bench.workers.worker import Seen

SECOND = 1_000_000_000


class Terminal(io.StringIO):
    def isatty(self):
        return True


def answer(end_s, *, latency_s=1.0, ttft_s=0.25, num_tokens=10, **changes):
    """A streamed answer that ended `end_s` after the beginning: a role, text, usage."""
    sent, end = round((end_s - latency_s) * SECOND), round(end_s * SECOND)
    pieces = [(sent + 1000, b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n'),
              (sent + round(ttft_s * SECOND), b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'),
              (end, b'data: {"choices":[],"usage":{"completion_tokens": %d}}\n\n' % num_tokens)]
    response = Response(status=200, headers={"content-type": "text/event-stream"}, pieces=pieces)
    return Exchange(sent_ns=sent, end_ns=end, response=response, **changes)


def live(exchanges, at_s, **changes):
    cell = LiveCell("1/2: 4 in flight", **changes)
    for exchange in exchanges:
        cell.add(exchange)
    cell.read(round(at_s * SECOND))
    return cell.line(round(at_s * SECOND), num_in_flight=4)


def test_line_tells_rate_first_tokens_requests_in_flight_and_time_left():
    line = live([answer(1.0, ttft_s=0.2), answer(1.5, ttft_s=0.3), answer(2.0, ttft_s=0.4)], 2.0, num_requests=12)
    assert line == "██░░░░░░░░ 3/12 1/2: 4 in flight · 15 tokens/s · TTFT 300.0 ms · 4 in flight · 6 s left"


def test_rate_is_of_what_ended_lately():
    line = live([answer(1.0, num_tokens=5000), answer(59.0, num_tokens=30)], 60.0, duration_s=120.0)
    assert "15 tokens/s" in line
    assert line.endswith("1:00 min left")
    assert line.startswith("█████░░░░░ 2 ")


def test_failures_are_counted_and_cancelled_requests_are_none():
    line = live([answer(1.0, failure=Failure("timeout", "late")), answer(1.0, was_cancelled=True,
                                                                         failure=Failure("cancelled", "on purpose"))],
                2.0, num_requests=4)
    assert "1 failed" in line
    assert "TTFT" not in line


def test_requests_of_other_processes_are_told_alike():
    cell = LiveCell("1/1", num_requests=100)
    for worker in (0, 1):
        seen = Seen()
        for end in (9.0, 9.5):
            seen.add(answer(end, num_tokens=100, ttft_s=0.2 + 0.2 * worker))
        seen.add(answer(9.0, failure=Failure("timeout", "late")))
        pulse = seen.pulse(num_in_flight=3 + worker)
        assert (pulse.num_ended, pulse.num_failed, pulse.num_tokens, pulse.latency_s) == (3, 1, 200, 1.0)
        pulse.at_ns = 9 * SECOND
        cell.add_elsewhere(worker, pulse)
    cell.read(10 * SECOND)
    assert cell.line(10 * SECOND, num_in_flight=0) == (
        "░░░░░░░░░░ 6/100 1/1 · 200 tokens/s · TTFT 300.0 ms · 7 in flight · 2 failed · 2:37 min left")
    cell.read(60 * SECOND)
    assert "tokens/s" not in cell.line(60 * SECOND)


def test_terminal_line_is_drawn_over_and_cleared():
    out = Terminal()
    progress = Progress(out=out)
    progress.start(2, TARGET, in_flight=lambda: 3)
    progress.cell_started(spec(num_requests=20))
    progress.request_ended(answer(1.0))
    progress.draw()
    progress.cell_ended(result([(spec(), [later(request(), 0)])]).cells[0])
    progress.stop()
    text = out.getvalue()
    assert "made-up at http://127.0.0.1:1" in text
    assert "\r\x1b[K" in text
    assert "1/20 cell 1/2: c1-p16-o4" in text
    assert "3 in flight" in text
    assert text.endswith("\r\x1b[K")
    assert not [t for t in threading.enumerate() if t.name == "progress"]


def test_pipe_gets_plain_lines():
    out = io.StringIO()
    progress = Progress(out=out)
    progress.start(1, TARGET)
    progress.cell_started(spec(load=LoadSpec(kind="poisson", rate=2.0, duration_s=60.0), is_stream=False))
    progress.draw()
    progress.stop()
    assert "\x1b" not in out.getvalue()
    assert "cell 1/1: r2-p16-o4-whole" in out.getvalue()


def test_what_cannot_be_written_is_left_out():
    class Full(Terminal):
        num_writes = 0

        def write(self, text):
            self.num_writes += 1
            raise OSError(errno.ENOSPC, "No space left on device")

    out = Full()
    progress = Progress(out=out)
    progress.start(1, TARGET)
    progress.cell_started(spec(num_requests=20))
    progress.request_ended(answer(1.0))
    progress.draw()
    progress.stop()
    assert out.num_writes == 1


@pytest.mark.parametrize("out", [Terminal(), io.StringIO()])
def test_silent_one_writes_nothing(out):
    progress = Progress(is_silent=True, out=out)
    progress.start(1, TARGET)
    progress.cell_started(spec())
    progress.request_ended(answer(1.0))
    progress.draw()
    progress.stop()
    assert out.getvalue() == ""
