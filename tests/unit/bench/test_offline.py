import json
from types import SimpleNamespace

import pytest

from pelton.bench.files import read_result
from pelton.bench.offline import make_result, record_offline
from pelton.errors import ConfigError

MS = 1_000_000


def run(trial=0, *, is_warmup=False, cached=0, num_tokens=4, start_ms=0, batch_size=2):
    """A run of 8 tokens in and 4 out: first token after 10 ms, the others 2 ms apart, then 1 ms to the end."""
    began = start_ms * MS
    stamps = [began + (10 + 2 * i) * MS for i in range(num_tokens)]
    requests = [SimpleNamespace(sent_ns=began, token_ns=stamps, num_tokens=num_tokens, num_cached_tokens=cached,
                                finish_reason="length") for _ in range(batch_size)]
    return SimpleNamespace(batch_size=batch_size, input_len=8, output_len=4, is_warmup=is_warmup, trial=trial,
                           requests=requests, end_ns=stamps[-1] + MS, step_host_ms=0.4, vocab_size=100)


def runs(**changes):
    return [run(is_warmup=True), run(0, start_ms=100, **changes), run(1, start_ms=200, **changes)]


def test_runs_become_a_cell_of_several_trials():
    result = make_result("throughput", runs(), model="m", seed=1)
    (cell,) = result.cells
    assert (cell.id, cell.num_trials, cell.num_done, cell.peak_in_flight) == ("c2-p8-o4", 2, 4, 2)
    assert cell.distribution("ttft").p50 == 10.0
    assert cell.distribution("itl").p50 == 2.0
    assert cell.value("output_throughput") == pytest.approx(16 / 0.032)  # what lies between runs does not count
    assert [s.values for s in result.series] == [[0.4] * 3]
    assert {f.severity for f in result.findings} <= {"note"}


def test_files_of_a_sweep_are_written_and_read_back(tmp_path, capsys):
    assert record_offline("latency", runs(), model="m", seed=1, output_dir=str(tmp_path / "out")) == 0
    assert "m, in process, offline, 0.2 s" in capsys.readouterr().out
    result = read_result(tmp_path / "out" / "results.json")
    assert (result.kind, result.schema, result.status) == ("latency", "pelton.bench/2", "complete")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["cells.csv", "report.html", "requests.csv",
                                                                    "results.json"]


def test_the_audit_names_cached_prompts_and_short_answers(capsys):
    status = record_offline("throughput", runs(cached=4, num_tokens=3), model="m", seed=1, as_json=True, strict=True)
    data = json.loads(capsys.readouterr().out)
    assert {"output_lengths_differ", "prompts_cached"} <= {f["name"] for f in data["findings"]}
    assert data["verdicts"] == {"c2-p8-o4": "failed"}
    assert status == 3


def test_unwritable_directory(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written"):
        record_offline("throughput", runs(), model="m", seed=1, output_dir=str(tmp_path / "file" / "out"))
