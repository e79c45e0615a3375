"""`pelton serve MODEL --random-weights`: a server over made-up weights, from a config.json alone."""

import json
import shutil

import httpx
import pytest
from helpers.real_server import DEADLINE_S, serving

from pelton import cli
from pelton.checkpoint.hub import shipped_model

IDS = [5, 6, 7]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    """pelton-tiny's shape and nothing else."""
    folder = tmp_path_factory.mktemp("model")
    shutil.copy(shipped_model("pelton-tiny") / "config.json", folder)
    return folder


@pytest.fixture(scope="module")
def server(model_dir, tmp_path_factory):
    log = tmp_path_factory.mktemp("log") / "log"
    with serving(log, "--random-weights", "--served-model-name", "made-up", model=str(model_dir)) as server:
        yield server


def complete(server, **fields):
    body = {"prompt": IDS, "max_tokens": 5, "temperature": 0, "ignore_eos": True, **fields}
    return httpx.post(f"{server.url}/v1/completions", json=body, trust_env=False, timeout=DEADLINE_S)


def test_completes_token_ids_and_tells_tokens_as_numbers(server):
    answer = complete(server).json()
    ids = [int(word) for word in answer["choices"][0]["text"].split()]
    assert len(ids) == answer["usage"]["completion_tokens"] == 5
    assert complete(server, prompt=" ".join(map(str, IDS))).json()["choices"] == answer["choices"]


def test_streams_one_chunk_a_token(server):
    *events, last = [line for line in complete(server, stream=True).text.split("\n\n") if line]
    texts = [json.loads(event.removeprefix("data: "))["choices"][0]["text"] for event in events]
    assert last == "data: [DONE]"
    assert "".join(texts) == complete(server).json()["choices"][0]["text"]
    assert [len(text.split()) for text in texts] == [1] * 5


def test_says_what_needs_a_tokenizer(server):
    refused = complete(server, prompt="hello")
    assert refused.status_code == 400
    assert "token ids" in refused.json()["error"]["message"]
    chat = {"messages": [{"role": "user", "content": "hello"}]}
    refused = httpx.post(f"{server.url}/v1/chat/completions", json=chat, trust_env=False, timeout=DEADLINE_S)
    assert refused.status_code == 400
    assert "chat template" in refused.json()["error"]["message"]
    refused = complete(server, prompt=[10**8])
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "prompt"


def test_the_seed_decides_and_a_tokenizer_beside_the_config_is_used(tmp_path, server):
    with serving(tmp_path / "log", "--random-weights", "--seed", "1") as other:  # pelton-tiny, which has one
        text = complete(other).json()["choices"][0]["text"]
        assert complete(other, prompt="def f(x):").status_code == 200
    assert text != complete(server).json()["choices"][0]["text"]
    assert not text.replace(" ", "").isdecimal()


def test_bad_folders_and_limits_are_told_in_one_line(tmp_path, model_dir, capsys):
    assert cli.main(["serve", str(tmp_path / "missing"), "--random-weights", "--port", "0"]) == 1
    assert "missing" in capsys.readouterr().err
    assert cli.main(["serve", str(model_dir), "--random-weights", "--port", "0", "--max-seq-len", "999999"]) == 1
    assert "max_seq_len" in capsys.readouterr().err
