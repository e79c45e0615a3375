import http.server
import sys
import threading
import types

import pytest

from pelton.bench.monitors import gpu
from pelton.bench.monitors.prometheus import MAX_SERIES, Unreadable, fetch, parse
from pelton.bench.monitors.watch import Watch

PAGE = """# HELP running Requests running.
# TYPE running gauge
running{model="a b"} 3.0
# TYPE ttft_seconds histogram
ttft_seconds_bucket{le="0.1"} 4.0
ttft_seconds_bucket{le="+Inf"} 5.0
ttft_seconds_sum 0.7
ttft_seconds_count 5.0
# TYPE tokens counter
tokens_total 12.0
# TYPE odd gauge
odd NaN
"""


@pytest.fixture
def server():
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/metrics":
                self.send_response(200)
                self.end_headers()
                self.wfile.write(PAGE.encode())
            else:
                self.send_error(404)

        def log_message(self, *_):
            pass

    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{made.server_port}"
    made.shutdown()
    thread.join()
    made.server_close()


def test_prometheus_text_gives_gauges_counters_and_sums():
    found = {name: (labels, value) for name, _, labels, value in parse(PAGE)}
    assert found == {"running": ({"model": "a b"}, 3.0), "ttft_seconds_sum": ({}, 0.7),
                     "ttft_seconds_count": ({}, 5.0), "tokens_total": ({}, 12.0)}


@pytest.mark.parametrize("text", ["", "<html><body>hello</body></html>", "x{"])
def test_what_is_no_prometheus_text_is_said_so(text):
    with pytest.raises(Unreadable):
        parse(text)


def test_only_so_many_series_are_kept():
    text = "# TYPE many gauge\n" + "".join(f'many{{i="{i}"}} 1\n' for i in range(2 * MAX_SERIES))
    assert len(parse(text)) == MAX_SERIES


def test_a_missing_page_or_server_is_unreadable(server):
    with pytest.raises(Unreadable, match="answered 404"):
        fetch(f"{server}/elsewhere")
    with pytest.raises(Unreadable, match="refused"):
        fetch("http://127.0.0.1:1/metrics")


def wait_for(watch, count):
    """Reads until there are so many readings of the first series, or something is missing."""
    while True:
        series, missing = watch.read(0)
        if missing or (series and len(series[0].values) >= count):
            return series, missing


@pytest.mark.timeout(60)
def test_the_servers_metrics_are_watched_on_the_clock_of_the_requests(server):
    watch = Watch(gpus=None, metrics_url=f"{server}/metrics")
    watch.start()
    try:
        series, missing = wait_for(watch, 2)
        watch.stop()
        after, _ = watch.read(10_000_000)
    finally:
        watch.close()
    assert not missing
    running = next(s for s in series if s.name == "running")
    assert (running.source, running.labels, running.values[0]) == ("server", {"model": "a b"}, 3.0)
    assert running.at_us == sorted(running.at_us)
    moved = next(s for s in after if s.name == "running")
    assert moved.at_us[0] == pytest.approx(running.at_us[0] - 10_000, abs=1)


@pytest.mark.timeout(60)
def test_what_cannot_be_watched_is_named():
    watch = Watch(gpus=(), metrics_url="http://127.0.0.1:1/metrics")
    watch.start()
    reasons = []
    try:
        while len(reasons) < 2:
            series, reasons = watch.read(0)
            if any(s.source == "gpu" for s in series):
                pytest.skip("this machine has a GPU")
    finally:
        watch.close()
    assert reasons[0].startswith("GPUs: ")
    assert "server metrics: http://127.0.0.1:1/metrics" in reasons[1]


def test_nothing_to_watch_starts_nothing():
    watch = Watch(gpus=None, metrics_url=None)
    watch.start()
    assert watch.read(0) == ([], [])
    watch.close()


class FakeNvml(types.ModuleType):
    NVMLError = type("NVMLError", (Exception,), {})

    def nvmlInit(self):
        pass

    def nvmlDeviceGetCount(self):
        return 2

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetPowerUsage(self, handle):
        return 350_500

    def nvmlDeviceGetUtilizationRates(self, handle):
        if handle == 1:
            raise self.NVMLError("not supported")
        return types.SimpleNamespace(gpu=97)

    def nvmlDeviceGetMemoryInfo(self, handle):
        return types.SimpleNamespace(used=3 * 2**30)


def test_gpus_are_read_and_what_one_does_not_report_is_left_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml("pynvml"))
    values = gpu.GpuReader().read()
    assert ("power", "W", {"gpu": "0"}, 350.5) in values
    assert ("utilization", "%", {"gpu": "0"}, 97.0) in values
    assert [name for name, _, labels, _ in values if labels == {"gpu": "1"}] == ["power", "memory_used"]
    with pytest.raises(gpu.Unavailable, match="no GPU 5; this machine has 2"):
        gpu.GpuReader((5,))
