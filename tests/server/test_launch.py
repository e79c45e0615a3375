"""The server as a program: ports, port file, signals, what it imports."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
from helpers.fake_engine import FakeEngineClient
from helpers.tokenizers import write_tokenizer

from pelton.config import ExecutorConfig, ServeConfig
from pelton.engine.client import EngineClient
from pelton.errors import CheckpointError, ConfigError, EngineError
from pelton.server import launch
from pelton.server.launch import bind, run_serve
from pelton.tokenizer.tokenizer import Tokenizer

TESTS = Path(__file__).parents[1]


@pytest.fixture
def engine_dir(tmp_path):
    write_tokenizer(tmp_path / "engine" / "tokenizer")
    return tmp_path / "engine"


@pytest.fixture
def program(engine_dir):
    """Starts the server as a process of its own; returns it after its first line."""
    running = []

    def start(*flags, **config):
        arguments = [str(engine_dir), json.dumps({"port": 0, **config}), *flags]
        process = subprocess.Popen([sys.executable, "-m", "helpers.serve_fake", *arguments], stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, text=True,
                                   env={**os.environ, "PYTHONPATH": str(TESTS)})
        running.append(process)
        assert process.stdout.readline() == "Loading\n", process.stderr.read()
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


def url_of(process):
    line = process.stdout.readline()
    assert line.startswith("Ready: http://127.0.0.1:"), line
    return line.removeprefix("Ready: ").strip()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_serves_until_told_to_end(program, tmp_path, signum):
    port_file = tmp_path / "port"
    port_file.write_text("1")
    process = program(port_file=str(port_file))
    url = url_of(process)
    assert f"http://127.0.0.1:{port_file.read_text().strip()}" == url
    assert sorted(os.listdir(tmp_path)) == ["engine", "port"], "no temporary file is left"
    assert httpx.get(f"{url}/health", trust_env=False).json() == {"status": "ok"}
    answer = httpx.post(f"{url}/v1/completions", json={"prompt": "fox"}, trust_env=False).json()
    assert answer["choices"][0]["text"].startswith("The quick")
    process.send_signal(signum)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "", "")


def test_the_port_file_of_an_earlier_run_is_gone_while_loading(program, tmp_path):
    port_file = tmp_path / "port"
    port_file.write_text("1")
    process = program("slow", port_file=str(port_file))
    assert not port_file.exists()
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert not port_file.exists()


def test_two_servers_stand_side_by_side(program):
    urls = [url_of(program()), url_of(program())]
    assert len(set(urls)) == 2
    for url in urls:
        assert httpx.get(f"{url}/v1/models", trust_env=False).status_code == 200


def test_a_taken_port_is_told_before_the_engine_starts(program, engine_dir, monkeypatch):
    monkeypatch.setattr(EngineClient, "start", None)
    port = int(url_of(program()).rpartition(":")[2])
    with pytest.raises(ConfigError, match=f"port {port} .*--port 0"):
        run_serve(engine_dir, ServeConfig(port=port), ExecutorConfig(), model_name="m")


@pytest.mark.timeout(60)
def test_a_port_lost_while_loading_is_told(engine_dir, monkeypatch):
    clients, thief = [], None

    async def start(engine_dir, config, *, random_weights):
        nonlocal thief
        thief = bind("127.0.0.1", port)
        thief.listen()
        clients.append(FakeEngineClient(Tokenizer.from_dir(engine_dir / "tokenizer")))
        return clients[0]

    with bind("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    monkeypatch.setattr(launch.EngineClient, "start", start)
    with pytest.raises(ConfigError, match="--port 0"):
        run_serve(engine_dir, ServeConfig(port=port), ExecutorConfig(), model_name="m")
    assert not clients[0].is_alive, "the engine is shut down"
    thief.close()


@pytest.mark.parametrize(("config", "match"), [
    ({"host": "no.such.host.invalid"}, "cannot be resolved"),
    ({"host": "203.0.113.1"}, "203.0.113.1"),
    ({"host": "a" * 70}, "cannot be resolved"),
    ({"port_file": "/nonexistent/folder/port"}, "port_file"),
])
def test_unusable_addresses_and_files(engine_dir, config, match, monkeypatch):
    monkeypatch.setattr(EngineClient, "start", None)
    with pytest.raises(ConfigError, match=match):
        run_serve(engine_dir, ServeConfig(**{"port": 0, **config}), ExecutorConfig(), model_name="m")


def test_ipv6():
    with bind("::1", 0) as listener:
        assert listener.getsockname()[1] > 0


def test_missing_tokenizer_and_template(engine_dir, tmp_path):
    with pytest.raises(CheckpointError, match="no such directory"):
        run_serve(tmp_path / "nowhere", ServeConfig(port=0), ExecutorConfig(), model_name="m")
    with pytest.raises(CheckpointError, match=r"mine\.jinja"):
        run_serve(engine_dir, ServeConfig(port=0, chat_template=str(tmp_path / "mine.jinja")), ExecutorConfig(),
                  model_name="m")


def test_an_engine_that_is_refused_is_told(engine_dir):
    with pytest.raises(EngineError, match=r"engine\.json"):
        run_serve(engine_dir, ServeConfig(port=0), ExecutorConfig(), model_name="m")


def test_signals_do_after_a_server_what_they_did_before(engine_dir, tmp_path):
    before = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]
    for folder, error in ((tmp_path / "nowhere", CheckpointError), (engine_dir, EngineError)):
        with pytest.raises(error):
            run_serve(folder, ServeConfig(port=0), ExecutorConfig(), model_name="m")
        assert [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)] == before


def test_imports_no_torch():
    code = """if True:
        import sys, pelton.server.app, pelton.server.http, pelton.server.launch
        print({'torch', 'transformers', 'numpy', 'fastapi'} & set(sys.modules))
        """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_the_engine_starts_before_what_http_takes_is_imported():
    modules = "{'uvicorn', 'starlette', 'tokenizers', 'jinja2'}"
    code = f"import sys, pelton.server.launch; print({modules} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_the_app_is_loaded_while_the_engine_starts(engine_dir, monkeypatch):
    is_app_loading, told = threading.Event(), []

    async def start(engine_dir, config, *, random_weights):
        if not await asyncio.to_thread(is_app_loading.wait, 30):
            told.append("the engine waited for the app")
        raise EngineError("it has had enough")

    def load_app(*args, **options):
        is_app_loading.set()

    monkeypatch.setattr(launch.EngineClient, "start", start)
    monkeypatch.setattr(launch, "_load_app", load_app)
    with pytest.raises(EngineError, match="had enough"):
        run_serve(engine_dir, ServeConfig(port=0), ExecutorConfig(), model_name="m")
    assert told == []


@pytest.mark.parametrize("is_ready", [True, False])
def test_a_tokenizer_that_is_refused_ends_the_engine(engine_dir, monkeypatch, is_ready):
    client, has_begun, has_ended = FakeEngineClient(Tokenizer.from_dir(engine_dir / "tokenizer")), threading.Event(), []

    async def start(engine_dir, config, *, random_weights):
        try:
            has_begun.set()
            if not is_ready:
                await asyncio.Event().wait()
            return client
        finally:
            has_ended.append(True)

    def load_app(*args, **options):
        assert has_begun.wait(30)
        raise CheckpointError("no tokenizer here")

    monkeypatch.setattr(launch.EngineClient, "start", start)
    monkeypatch.setattr(launch, "_load_app", load_app)
    with pytest.raises(CheckpointError, match="no tokenizer here"):
        run_serve(engine_dir, ServeConfig(port=0), ExecutorConfig(), model_name="m")
    assert has_ended == [True]
    assert client.is_alive != is_ready
