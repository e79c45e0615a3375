"""What a model's generation_config.json says is used for what a request leaves out."""

import json
import shutil

import pytest

from pelton.errors import CheckpointError
from pelton.server.openai.defaults import read_sampling_defaults

CHAT = {"messages": [{"role": "user", "content": "fox"}]}
DEFAULTS = {"temperature": 0.6, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.05}


@pytest.fixture
def folder(tokenizer_dir, tmp_path):
    shutil.copytree(tokenizer_dir, tmp_path, dirs_exist_ok=True)
    write(tmp_path, {**DEFAULTS, "do_sample": True, "eos_token_id": 5, "min_p": None, "transformers_version": "5.0"})
    return tmp_path


def write(folder, content):
    (folder / "generation_config.json").write_text(content if isinstance(content, str) else json.dumps(content))


def sampled(server, **fields):
    """(temperature, top_p, top_k, repetition_penalty) that the engine was asked for."""
    assert server.post("/v1/chat/completions", {**CHAT, **fields}).status_code == 200
    params = server.engine.requests[-1].sampling_params
    return params.temperature, params.top_p, params.top_k, params.repetition_penalty


def test_left_out_fields_are_the_models(serve, folder):
    assert sampled(serve(tokenizer_dir=folder)) == (0.6, 0.9, 20, 1.05)


def test_what_is_asked_for_wins(serve, folder):
    server = serve(tokenizer_dir=folder)
    assert sampled(server, temperature=0, top_k=-1) == (0.0, 0.9, -1, 1.05)
    assert server.post("/v1/completions", {"prompt": "fox", "top_p": 1}).status_code == 200
    assert server.engine.requests[-1].sampling_params.top_p == 1.0
    assert server.engine.requests[-1].sampling_params.temperature == 0.6


def test_none_of_it(serve, folder):
    assert sampled(serve(tokenizer_dir=folder, generation_config="none")) == (1.0, 1.0, 0, 1.0)


def test_a_model_without_the_file(tmp_path):
    assert read_sampling_defaults(tmp_path) == {}


@pytest.mark.parametrize(("content", "told"), [
    ("{", "not valid JSON"), ([1], "JSON object"), ({"temperature": -1}, "temperature.*--generation-config none"),
    ({"top_k": "many"}, "top_k"), ({"top_p": 0}, "top_p")])
def test_bad_files_are_told(tmp_path, content, told):
    write(tmp_path, content)
    with pytest.raises(CheckpointError, match=f"generation_config.json.*{told}"):
        read_sampling_defaults(tmp_path)
