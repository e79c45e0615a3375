import csv
import io
import json
import os

import pytest
from helpers.bench import later, request, result, spec

from pelton.bench import files
from pelton.bench.files import read_result, to_json, write_atomic, write_result
from pelton.bench.report.csv_tables import cells_csv, requests_csv
from pelton.errors import ConfigError


@pytest.fixture
def made():
    return result([(spec(num_requests=2), [request(), later(request(), 20_000, index=1)]), (spec(concurrency=2), [])])


def test_written_result_reads_back_equal(made, tmp_path):
    write_result(made, tmp_path)
    assert read_result(tmp_path / "results.json") == made
    assert sorted(os.listdir(tmp_path)) == ["cells.csv", "requests.csv", "results.json"]


def test_json_is_plain_and_holds_the_definitions(made):
    data = json.loads(to_json(made))
    assert data["schema"] == "pelton.bench/2"
    assert len(data["requests"]) == 2
    assert {m["name"]: m["unit"] for m in data["metrics"]}["ttft"] == "ms"
    assert json.loads(to_json(result([(spec(), [])])))["requests"] == []


def test_csv_columns_and_rows(made):
    rows = list(csv.DictReader(io.StringIO(cells_csv(made).decode())))
    assert rows[0]["ttft.p50 [ms]"] == "10.0"
    assert rows[0]["ttft.p95 [ms]"] == ""  # two samples are too few
    assert rows[0]["in_flight_requests [requests]"]
    assert rows[1]["ttft.p50 [ms]"] == ""
    rows = list(csv.DictReader(io.StringIO(requests_csv(made).decode())))
    assert [row["index"] for row in rows] == ["0", "1"]
    assert rows[0]["num_content_chunks"] == "4"


@pytest.mark.parametrize(("text", "message"), [
    ("", "not a JSON object"), ("[]", "not a JSON object"), ("\xff", "does not|not a JSON object"),
    ('{"schema": "pelton.bench/9"}', "has schema 'pelton.bench/9'; this version reads"), ("{}", "has schema None"),
    ('{"schema": "pelton.bench/2"}', "does not fit schema")])
def test_files_that_are_no_result(tmp_path, text, message):
    path = tmp_path / "results.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=message):
        read_result(path)


def test_unknown_keys_and_missing_files_are_refused(made, tmp_path):
    data = json.loads(to_json(made))
    (tmp_path / "more.json").write_text(json.dumps({**data, "surprise": 1}))
    with pytest.raises(ConfigError, match="surprise"):
        read_result(tmp_path / "more.json")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_result(tmp_path / "none.json")


def test_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    write_atomic(path, b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(ConfigError, match="No space left on device"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["results.json"]


def test_a_full_disk_is_found_before_anything_is_measured(tmp_path, monkeypatch):
    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.Path, "write_bytes", full)
    with pytest.raises(ConfigError, match=r"output_dir .* cannot be written: No space left on device"):
        files.prepare_output_dir(str(tmp_path))
    assert os.listdir(tmp_path) == []


def test_output_dir_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="output_dir"):
        files.prepare_output_dir(str(tmp_path / "file" / "below"))
