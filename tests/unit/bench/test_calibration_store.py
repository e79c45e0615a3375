import msgspec
import pytest

from pelton.bench import calibration_store
from pelton.bench.calibrate import summarize_errors
from pelton.bench.calibration_store import client_errors, level_of, nearest
from pelton.bench.client import Exchange
from pelton.bench.framing import Response
from pelton.bench.results import ClientError


def error(level, us=1.0):
    return ClientError(concurrency=level, num_events=1, ttft_p50_us=us, ttft_p99_us=us, event_p50_us=us,
                       event_p99_us=us, itl_p50_us=us, itl_p99_us=us)


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Levels that were measured; each measurement is told from the others by its error."""
    levels = []

    def measure(level):
        levels.append(level)
        return error(level, float(len(levels)))

    monkeypatch.setenv("PELTON_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(calibration_store, "measure_error", measure)
    return levels


def test_each_level_is_measured_once(measured):
    first = client_errors([8, 1, 8])
    assert [e.concurrency for e in first] == [1, 8]
    assert client_errors([1, 8]) == first
    assert client_errors([1, 64])[0] == first[0]
    assert measured == [1, 8, 64]


def test_old_entries_and_those_of_other_machines_are_measured_again(measured, monkeypatch):
    client_errors([1])
    later = calibration_store.time.time() + calibration_store.MAX_AGE_S + 1
    with monkeypatch.context() as patch:
        patch.setattr(calibration_store.time, "time", lambda: later)
        client_errors([1])
    assert measured == [1, 1]
    monkeypatch.setattr(calibration_store, "_machine", lambda: "other")
    client_errors([1])
    assert measured == [1, 1, 1]


def test_damaged_or_unwritable_store_only_costs_time(measured, tmp_path):
    client_errors([1])
    (tmp_path / "cache" / "client-errors.json").write_text("{")
    client_errors([1])
    (tmp_path / "cache" / "client-errors.json").unlink()
    (tmp_path / "cache").rmdir()
    (tmp_path / "cache").touch()
    assert client_errors([1])[0].concurrency == 1
    assert measured == [1, 1, 1]


def test_levels_round_up():
    assert [level_of(n) for n in (1, 2, 8, 9, 64, 65, 512, 4000)] == [1, 8, 8, 64, 64, 512, 512, 512]
    errors = [error(1), error(64)]
    assert nearest(errors, 1).concurrency == 1
    assert nearest(errors, 50).concurrency == 64
    assert nearest(errors, 4000).concurrency == 64
    assert nearest([], 1) is None


def test_errors_are_differences_of_stamps():
    pieces = [(sent + late, b"data: " + msgspec.json.encode({"sent_ns": sent}) + b"\n\n")
              for sent, late in ((1_000_000, 5_000), (2_000_000, 7_000), (3_000_000, 4_000))]
    exchange = Exchange(response=Response(pieces=[*pieces, (4_000_000, b"data: {}\n\ndata: [DONE]\n\n")]))
    found = summarize_errors(8, [exchange])
    assert (found.num_events, found.ttft_p50_us, found.event_p50_us) == (3, 5.0, 5.0)
    assert found.itl_p50_us == pytest.approx(2.5)
