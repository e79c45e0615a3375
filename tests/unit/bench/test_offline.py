import json
from types import SimpleNamespace

import pytest

from pelton.bench.offline import record_throughput
from pelton.errors import ConfigError


def run(**changes):
    return SimpleNamespace(**{"batch_size": 2, "input_len": 8, "output_len": 10, "wall_s": [0.5, 0.25],
                              "num_output_tokens": [20, 20], "num_cached_tokens": 0, "step_host_ms": 0.4, **changes})


def test_table_and_file(tmp_path, capsys):
    path = tmp_path / "out.json"
    assert record_throughput([run()], model="m", output=str(path)) == 0
    printed = capsys.readouterr().out
    assert "offline throughput" in printed
    assert "nothing found" in printed
    data = json.loads(path.read_text())
    assert data["schema"] == "pelton.bench.offline/1"
    assert data["records"][0]["output_tokens_per_s"] == [40.0, 80.0]


def test_json_names_what_is_wrong(capsys):
    record_throughput([run(num_output_tokens=[20, 12], num_cached_tokens=16)], model="m", as_json=True)
    data = json.loads(capsys.readouterr().out)
    assert {f["name"] for f in data["findings"]} == {"output_lengths_differ", "prompts_cached"}
    assert "50%" in data["findings"][1]["evidence"]


def test_unwritable_file(tmp_path):
    with pytest.raises(ConfigError, match="cannot write"):
        record_throughput([run()], model="m", output=str(tmp_path / "none" / "out.json"))
