"""Model names: the shipped model, local folders, and downloads from a hub that fails in every way we know."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import fake_hub
from helpers.checkpoints import make_checkpoint

from pelton.checkpoint.hf_config import load_model_config
from pelton.checkpoint.hub import absolute_source, resolve_model, wanted_files
from pelton.checkpoint.reader import CheckpointReader
from pelton.errors import CheckpointError

UNWANTED = ("pytorch_model.bin", "original/model.safetensors", "modeling_custom.py", "README.md",
            "model.fp16.safetensors", "consolidated.safetensors", "onnx/model.onnx")


@pytest.fixture
def hub() -> Iterator[fake_hub.FakeHub]:
    server = fake_hub.FakeHub()
    yield server
    server.close()


@pytest.fixture(scope="module")
def model_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A sharded checkpoint with everything around it that a hub repository may have."""
    path = make_checkpoint("LlamaForCausalLM", tmp_path_factory.mktemp("hub"), sharded=True, num_hidden_layers=1)
    files = {file.name: file.read_bytes() for file in path.iterdir()}
    return {**files, **dict.fromkeys(UNWANTED, b"x" * 100)}


def resolve(hub: fake_hub.FakeHub, tmp_path: Path, name: str = "org/model", revision: str | None = None) -> Path:
    return resolve_model(name, revision=revision, endpoint=hub.endpoint, cache_dir=tmp_path / "hub-cache")


def test_shipped_model_is_a_readable_checkpoint() -> None:
    path = resolve_model("pelton-tiny")
    assert load_model_config(path).architecture == "LlamaForCausalLM"
    assert (path / "tokenizer.json").exists()


def test_local_folder_never_touches_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    (tmp_path / "org" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve_model("org/model") == Path("org/model")  # also spelt like a hub id
    assert resolve_model(str(tmp_path / "org")) == tmp_path / "org"
    for name in ("./org/other", str(tmp_path / "nothing"), "~/no-such-folder-here"):
        with pytest.raises(CheckpointError, match="does not exist"):
            resolve_model(name)


def test_absolute_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert absolute_source("here") == str(tmp_path / "here")
    assert absolute_source("org/model") == "org/model"
    assert absolute_source("pelton-tiny") == "pelton-tiny"


def test_sharded_model_downloads_only_what_is_needed(hub: fake_hub.FakeHub, tmp_path: Path,
                                                     model_files: dict[str, bytes]) -> None:
    hub.repositories["org/model"] = fake_hub.Repository(model_files)
    path = resolve(hub, tmp_path)
    needed = {name for name in model_files if name not in UNWANTED}
    assert {file.name for file in path.iterdir()} == needed
    assert sorted(hub.downloads()) == sorted(needed)
    for name in needed:
        assert (path / name).read_bytes() == model_files[name]
    assert "model.embed_tokens.weight" in CheckpointReader(path).names


def test_second_time_downloads_nothing_and_works_without_the_hub(hub: fake_hub.FakeHub, tmp_path: Path,
                                                                 model_files: dict[str, bytes]) -> None:
    hub.repositories["org/model"] = fake_hub.Repository(model_files)
    first = resolve(hub, tmp_path)
    hub.requests.clear()
    assert resolve(hub, tmp_path) == first
    assert hub.downloads() == []
    hub.failure = 503
    assert resolve(hub, tmp_path) == first
    (first / "model-00002-of-00004.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"cannot be reached .* incomplete \(.*model-00002-of-00004"):
        resolve(hub, tmp_path)


def test_broken_transfer_goes_on_where_it_stopped(hub: fake_hub.FakeHub, tmp_path: Path,
                                                  model_files: dict[str, bytes]) -> None:
    name = "model-00001-of-00004.safetensors"
    hub.repositories["org/model"] = fake_hub.Repository(model_files, drops=Counter({name: 1}))
    path = resolve(hub, tmp_path)
    assert (path / name).read_bytes() == model_files[name]
    assert hub.repositories["org/model"].drops[name] == 0


def test_new_commit_is_fetched(hub: fake_hub.FakeHub, tmp_path: Path, model_files: dict[str, bytes]) -> None:
    hub.repositories["org/model"] = fake_hub.Repository(model_files)
    first = resolve(hub, tmp_path)
    changed = {**model_files, "generation_config.json": b'{"eos_token_id": [1, 5]}'}
    hub.repositories["org/model"] = fake_hub.Repository(changed, sha="f" * 40)
    second = resolve(hub, tmp_path)
    assert second != first
    assert load_model_config(second).eos_ids == (1, 5)
    assert resolve(hub, tmp_path, revision="f" * 40) == second


@pytest.mark.parametrize(("change", "text"), [
    ({"is_gated": True}, "access is gated; accept its terms.*HF_TOKEN"),
    ({"files": {"config.json": b"{}", "pytorch_model.bin": b""}}, "only pickle .*pytorch_model.bin.*save_pretrained"),
    ({"files": {"config.json": b"{}", "model.gguf": b""}}, "only model.gguf"),
    ({"files": {"README.md": b""}}, "the weights are missing"),
])
def test_repository_that_cannot_be_used(hub: fake_hub.FakeHub, tmp_path: Path, model_files: dict[str, bytes],
                                        change: dict, text: str) -> None:
    hub.repositories["org/model"] = fake_hub.Repository(**{"files": model_files, **change})
    with pytest.raises(CheckpointError, match=f"org/model: .*{text}") as caught:
        resolve(hub, tmp_path)
    assert "\n" not in str(caught.value)
    assert not [name for name in hub.downloads() if name.endswith((".bin", ".gguf", ".safetensors"))]


def test_unknown_names(hub: fake_hub.FakeHub, tmp_path: Path, model_files: dict[str, bytes]) -> None:
    hub.repositories["org/model"] = fake_hub.Repository(model_files)
    with pytest.raises(CheckpointError, match="org/modle: neither a local folder nor a model on the hub"):
        resolve(hub, tmp_path, "org/modle")
    with pytest.raises(CheckpointError, match="org/model: no such revision 'v9'"):
        resolve(hub, tmp_path, revision="v9")
    with pytest.raises(CheckpointError, match="name is empty"):
        resolve(hub, tmp_path, "")
    for name in ("a/b/c", "org/mo del", "http://x/y", "org/..", "--help/x"):
        with pytest.raises(CheckpointError, match="neither an existing folder nor a hub id"):
            resolve(hub, tmp_path, name)
    with pytest.raises(CheckpointError, match="revision: pelton-tiny is not a hub model"):
        resolve_model("pelton-tiny", revision="main")


def test_hub_out_of_reach(hub: fake_hub.FakeHub, tmp_path: Path) -> None:
    hub.close()
    with pytest.raises(CheckpointError, match=r"the hub cannot be reached .* not in the cache") as caught:
        resolve(hub, tmp_path)
    assert "\n" not in str(caught.value)


def test_hub_refuses_for_another_reason(hub: fake_hub.FakeHub, tmp_path: Path) -> None:
    hub.failure = 403
    with pytest.raises(CheckpointError, match=r"the hub answered 403 .*HF_TOKEN"):
        resolve(hub, tmp_path)


def test_environment_names_the_hub(hub: fake_hub.FakeHub, tmp_path: Path, model_files: dict[str, bytes]) -> None:
    """HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE are read by huggingface_hub when it is first imported."""
    hub.repositories["org/model"] = fake_hub.Repository(model_files)
    code = "import sys; from pelton.checkpoint.hub import resolve_model; print(resolve_model(sys.argv[1]))"

    def run(name: str, **more: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), **more}
        environment.pop("HF_HUB_CACHE", None)
        return subprocess.run([sys.executable, "-c", code, name], env=environment, capture_output=True, text=True,
                              check=False)

    done = run("org/model")
    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.strip())
    assert path.is_relative_to(tmp_path / "home")
    hub.requests.clear()
    assert run("org/model", HF_HUB_OFFLINE="1").stdout.strip() == str(path)
    assert "cannot be reached" in run("org/other", HF_HUB_OFFLINE="1").stderr
    assert hub.requests == []


def test_wanted_files_prefer_the_single_file() -> None:
    names = ["config.json", "model.safetensors", "model.safetensors.index.json", "model-00001-of-00001.safetensors"]
    assert wanted_files(names, "org/model") == ["config.json", "model.safetensors"]
