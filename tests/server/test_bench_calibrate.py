"""The calibration from end to end, with the server in a process of its own."""

import json

from pelton.bench.calibrate import NUM_TOKENS, CalibrateOptions, measure_error, run_calibrate
from pelton.bench.calibration_process import serve_in_process
from pelton.bench.client import Address, Client
from pelton.bench.event_loop import run


def test_every_event_is_compared():
    found = measure_error(4)
    assert found.num_events == 8 * NUM_TOKENS
    assert 0 < found.event_p50_us <= found.event_p99_us
    assert found.ttft_p50_us > 0
    assert found.itl_p50_us >= 0


def test_json_has_one_entry_per_number_of_streams(capsys):
    status = run_calibrate(CalibrateOptions(concurrency=(8, 16), json=True))
    printed = json.loads(capsys.readouterr().out)
    assert [e["concurrency"] for e in printed["errors"]] == [8, 16]
    assert status == (0 if printed["is_within_target"] else 1)


def test_server_process_ends_with_its_block():
    with serve_in_process(ttft_s=0.0, itl_s=0.0) as url:
        client = Client(Address.parse(url), headers={}, timeout_s=10.0)
        assert run(client.send(client.build("GET", "/models"))).response.status == 200
    failed = run(Client(Address.parse(url), headers={}, timeout_s=10.0).send(client.build("GET", "/models")))
    assert failed.failure.kind == "connect"
