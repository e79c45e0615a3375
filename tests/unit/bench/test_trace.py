import json

import pytest

from pelton.bench.load.stages import read_stages
from pelton.bench.load.trace import TraceRequest, read_trace, shared_tokens
from pelton.bench.results import LoadStage
from pelton.errors import ConfigError

MOONCAKE = [{"timestamp": 27_000, "input_length": 1100, "output_length": 52, "hash_ids": [0, 1, 2]},
            {"timestamp": 30_500, "input_length": 1024, "output_length": 9, "hash_ids": [0, 1]},
            {"timestamp": 28_000, "input_length": 600, "output_length": 1, "hash_ids": [0, 9]},
            {"timestamp": 31_000, "input_length": 40, "output_length": 5, "hash_ids": [7]}]


def write(tmp_path, text):
    path = tmp_path / "trace"
    path.write_text(text)
    return path


def test_mooncake_requests_come_in_order_from_time_zero(tmp_path):
    trace = read_trace(write(tmp_path, "\n".join(map(json.dumps, MOONCAKE)) + "\n\n"))
    assert trace == [TraceRequest(0.0, 1100, 52, (0, 1, 2)), TraceRequest(1.0, 600, 1, (0, 9)),
                     TraceRequest(3.5, 1024, 9, (0, 1)), TraceRequest(4.0, 40, 5, (7,))]
    assert shared_tokens(trace) == [1024, 512, 1024, 0]


def test_azure_as_csv_and_as_json_lines(tmp_path):
    rows = [("2023-11-16 18:15:46.6805900", 374, 44), ("2023-11-16 18:15:50.9951690", 396, 109)]
    text = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "\n".join(",".join(map(str, row)) for row in rows)
    lines = "\n".join(json.dumps(dict(zip(("TIMESTAMP", "ContextTokens", "GeneratedTokens"), row))) for row in rows)
    for found in (read_trace(write(tmp_path, text)), read_trace(write(tmp_path, lines))):
        assert [(r.prompt_tokens, r.output_tokens) for r in found] == [(374, 44), (396, 109)]
        assert [r.at_s for r in found] == pytest.approx([0, 4.314579], abs=1e-6)


def test_azure_times_with_a_zone(tmp_path):
    text = ("TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00.009930+00:00,2162,5\n"
            "2024-05-10 02:00:01+02:00,7,1\n")
    assert [r.at_s for r in read_trace(write(tmp_path, text))] == pytest.approx([0, 0.99007], abs=1e-6)


@pytest.mark.parametrize(("text", "message"), [
    ("", "holds no requests"), ("a,b\n1,2\n", "line 2: neither a Mooncake nor an Azure"),
    ('{"timestamp": 1, "input_length": 0, "output_length": 3}', "line 1"), ('{"timestamp": 1', "not a JSON object"),
    ('{"timestamp": "x", "input_length": 2, "output_length": 3}', "line 1"),
    ("TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,2\n", "line 2"),
    ('{"timestamp": 1, "input_length": 20000000, "output_length": 3}', "at most 10,000,000")])
def test_lines_that_are_none(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        read_trace(write(tmp_path, text))


def test_missing_trace(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_trace(tmp_path / "none")


def test_stages_as_text_and_as_file(tmp_path):
    text = read_stages("5:30, 5-20:60")
    assert text == [LoadStage(name="1: 5/s", rate=5, end_rate=5, duration_s=30),
                    LoadStage(name="2: 5 to 20/s", rate=5, end_rate=20, duration_s=60)]
    path = tmp_path / "stages.json"
    path.write_text('[{"rate": 5, "duration_s": 30, "name": "calm"}, {"rate": 5, "end_rate": 20, "duration_s": 60}]')
    assert read_stages(str(path)) == [LoadStage(name="calm", rate=5, end_rate=5, duration_s=30), text[1]]


def test_stages_of_requests_in_flight(tmp_path):
    text = read_stages("c4:30,c4-16:60,c16:200req")
    assert text == [LoadStage(name="1: 4 in flight", concurrency=4, end_concurrency=4, duration_s=30),
                    LoadStage(name="2: 4 to 16 in flight", concurrency=4, end_concurrency=16, duration_s=60),
                    LoadStage(name="3: 16 in flight", concurrency=16, end_concurrency=16, num_requests=200)]
    path = tmp_path / "stages.json"
    path.write_text('[{"concurrency": 4, "duration_s": 30}, {"concurrency": 4, "end_concurrency": 16, '
                    '"duration_s": 60}, {"concurrency": 16, "num_requests": 200}]')
    assert read_stages(str(path)) == text


@pytest.mark.parametrize("text", ["c0:5", "c2", "c2:", "c2:0req", "c2-4:9req", "c2.5:3", "c2:3,5:3", "5:30req",
                                  "c2:-1"])
def test_stages_of_requests_in_flight_that_are_none(text):
    with pytest.raises(ConfigError, match=r"^stages"):
        read_stages(text)


@pytest.mark.parametrize("stages", ["[]", '[{"rate": 1, "concurrency": 1, "duration_s": 1}]', '[{"duration_s": 1}]',
                                    '[{"rate": 1, "duration_s": 1, "name": "a"}, '
                                    '{"rate": 2, "duration_s": 1, "name": "a"}]',
                                    '[{"rate": 1, "duraton_s": 1}]', "{", '[{"concurrency": 2.5, "duration_s": 1}]'])
def test_a_file_of_stages_that_are_none(stages, tmp_path):
    (tmp_path / "stages.json").write_text(stages)
    with pytest.raises(ConfigError, match=r"^stages"):
        read_stages(str(tmp_path / "stages.json"))


@pytest.mark.parametrize("text", ["", "5", "5:", "x:3", "5:0", "-1:3", "0:5", "nan:1", "none.json"])
def test_stages_that_are_none(text):
    with pytest.raises(ConfigError, match=r"^stages"):
        read_stages(text)
