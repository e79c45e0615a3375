"""The benchmark of the host: where a call is that waits."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

pytest.importorskip("torch")
BENCHMARKS = str(Path(__file__).resolve().parents[3] / "benchmarks")


@pytest.fixture
def gpu_host(monkeypatch):
    monkeypatch.setattr(sys, "path", [BENCHMARKS, *sys.path])
    import gpu_host

    return gpu_host


def test_a_wait_is_charged_to_the_function_that_waits(gpu_host):
    watch, asked = gpu_host.Watch(), threading.Event()

    def answer():
        while not watch.places():
            pass
        asked.set()

    threading.Thread(target=answer, daemon=True).start()
    with watch:
        assert asked.wait(60)
    assert any("/threading.py:" in place for place in watch.places())
    assert all(ms >= 0 for ms in watch.places().values())


def test_a_place_names_the_line_of_pelton_behind_it(gpu_host):
    from pelton.runner.device import CpuQueue

    queue, has_begun, may_end = CpuQueue(), threading.Event(), threading.Event()

    def job():
        has_begun.set()
        may_end.wait()

    queue.submit(job)
    assert has_begun.wait(60)
    place = gpu_host.place_of(sys._current_frames()[queue._thread.ident])
    may_end.set()
    queue.close()
    here, _, ours = place.partition(", called at ")
    assert here
    assert ours.startswith("runner/device.py:")
    assert ours.endswith(" _run")
