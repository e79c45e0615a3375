"""The command line: help without weight, one clear line for everything that is wrong, JSON for machines."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pelton.build.prepare import ensure_engine
from pelton.checkpoint.hub import shipped_model
from pelton.cli import main
from pelton.server.launch import bind

PELTON = [sys.executable, "-m", "pelton.cli"]
COMMANDS = ["doctor", "plan", "convert", "build", "engine show", "generate", "serve", "bench throughput",
            "bench latency", "bench compare", "bench baseline save", "bench baseline check", "bench engines",
            "bench serve", "bench sweep", "bench report"]
LIGHT = ("doctor", "plan", "bench throughput", "bench serve", "bench sweep", "bench report", "engine show")
HEAVY = ("torch", "numpy", "transformers", "tokenizers", "huggingface_hub", "msgspec", "starlette", "uvicorn",
         "aiohttp", "plotly", "rich", "jinja2", "prometheus_client", "safetensors")


def pelton(*argv, **options):
    """Runs the program; its standard input is closed unless given."""
    options.setdefault("stdin", subprocess.DEVNULL)
    return subprocess.run([*PELTON, *argv], capture_output=True, text=True, timeout=100, **options)


@pytest.fixture
def run(capsys):
    """Runs a command in this process: (exit code, standard output, standard error)."""

    def run(*argv):
        try:
            code = main(list(argv))
        except SystemExit as end:
            code = end.code
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture(scope="module")
def engine_dir():
    return ensure_engine("pelton-tiny", show_progress=False)


@pytest.fixture
def checkpoint(tmp_path):
    """A copy of the shipped checkpoint to be spoilt."""
    return Path(shutil.copytree(shipped_model("pelton-tiny"), tmp_path / "checkpoint"))


def is_one_error(err, match):
    lines = [line for line in err.splitlines() if not line.startswith("pelton: building the engine")]
    assert len(lines) == 1, err
    assert re.match(r"pelton( [a-z ]+)?: error: ", lines[0]), err
    assert re.search(match, lines[0]), err
    return True


# Help.


def test_help_imports_nothing_heavy():
    code = (f"import sys\nfrom pelton.cli import main\ncode = main(['--help'])\n"
            f"print(sorted(set({HEAVY}) & set(sys.modules)), code)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[] 0"
    for command in ("serve", "generate", "bench", "engine"):
        assert f"  {command} " in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(run, command):
    code, out, err = run(*command.split(), "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: pelton {command}")
    assert "--" in out


@pytest.mark.parametrize("columns", ["60", "wide", "0", ""])
def test_help_with_any_width(run, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    assert run("serve", "--help")[0] == 0


@pytest.mark.parametrize("argv", [[], ["engine"], ["bench"]])
def test_without_a_command_the_list_is_shown(run, argv):
    code, out, err = run(*argv)
    assert (code, out) == (2, "")
    assert err.startswith("usage: pelton")
    assert run(*argv, "--help")[:2] == (0, err)


@pytest.mark.parametrize("argv", [["nonsense"], ["engine", "nonsense"], ["bench", "nonsense"], ["--nonsense"]])
def test_unknown_commands(run, argv):
    code, out, err = run(*argv)
    assert (code, out) == (2, "")
    assert f"unknown command '{argv[-1]}'" in err.splitlines()[0]


def test_version(run):
    for flag in ("--version", "-V"):
        assert re.fullmatch(r"pelton \d+\.\d+\.\d+\n", run(flag)[1])


@pytest.mark.parametrize("argv", ["--version", "plan pelton-tiny", "plan pelton-tiny --json", "bench schema",
                                  "bench -h"])
def test_a_full_disk_behind_standard_output_is_one_line(argv):
    done = subprocess.run(f"{shlex.join([*PELTON, *argv.split()])} > /dev/full", shell=True, stderr=subprocess.PIPE,
                          text=True, timeout=100, check=False)
    assert (done.returncode, done.stderr) == (1, "pelton: error: standard output: No space left on device\n")


# Wrong use.


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_option_is_one_line(run, command):
    names = {"build": ["m", "-o", "x"], "convert": ["m", "-o", "x"], "doctor": [], "serve": ["m"], "plan": ["m"],
             "bench baseline save": ["n", "m"], "bench baseline check": ["n", "m"]}
    positional = names.get(command, ["m"])
    code, out, err = run(*command.split(), *positional, "--nonsense")
    assert (code, out) == (2, "")
    assert is_one_error(err, rf"--nonsense.*pelton {command} --help")


@pytest.mark.parametrize(("argv", "match"), [
    ("generate pelton-tiny x --max-tokens many", "--max-tokens: invalid int value: 'many'"),
    ("generate pelton-tiny x --dtype int3", r"--dtype: invalid choice: 'int3' \(choose from"),
    ("generate pelton-tiny x --tokens-per-block 17", "--tokens-per-block"),
    ("generate pelton-tiny x y", "unrecognized arguments: y"),
    ("serve pelton-tiny --port http", "--port: invalid int value"),
    ("serve pelton-tiny --log-level loud", "--log-level"),
    ("build pelton-tiny", "required: -o/--output"),
    ("bench throughput --batch-sizes 1,x", "--batch-sizes: invalid comma-separated int value: '1,x'"),
    ("plan pelton-tiny --max-seq-le 5", "unrecognized arguments"),
])
def test_options_of_the_wrong_type(run, argv, match):
    code, out, err = run(*argv.split())
    assert (code, out) == (2, "")
    assert is_one_error(err, match)


@pytest.mark.parametrize(("argv", "match"), [
    (["generate", "pelton-tiny", ""], "prompt is empty"),
    (["generate", "pelton-tiny", "x", "--temperature", "-1"], "temperature must be between 0 and 100, got -1"),
    (["generate", "pelton-tiny", "x", "--temperature", "nan"], "temperature must be a finite number"),
    (["generate", "pelton-tiny", "x", "--temperature", "1e30"], "temperature"),
    (["generate", "pelton-tiny", "x", "--top-p", "0"], "top_p must be above 0"),
    (["generate", "pelton-tiny", "x", "--top-k", "-5"], "top_k"),
    (["generate", "pelton-tiny", "x", "--max-tokens", "0"], "max_tokens must be at least 1"),
    (["generate", "pelton-tiny", "x", "--max-tokens", "-3"], "max_tokens"),
    (["generate", "pelton-tiny", "x", "--seed", "9" * 20], "seed must be a 64-bit integer"),
    (["generate", "pelton-tiny", "word " * 3000], "at most 2047 fit"),
    (["generate", "pelton-tiny", "\udcff"], "surrogates"),
    (["generate", "pelton-tiny", "x", "--max-batch-size", "0"], "max_batch_size must be at least 1"),
    (["generate", "pelton-tiny", "x", "--max-seq-len", "9999999"], "max_seq_len must be at most"),
    (["generate", "pelton-tiny", "x", "--free-memory-fraction", "2"], "free_memory_fraction"),
    (["generate", "pelton-tiny", "x", "--max-blocks", "99999999999"], "max_blocks"),
    (["generate", "pelton-tiny", "x", "--num-threads", "0"], "num_threads"),
    (["generate", "./nowhere", "x"], "nowhere does not exist"),
    (["generate", "no/such/model", "x"], "neither an existing folder nor a hub id"),
    (["generate", "", "x"], "the name is empty"),
    (["serve", "./nowhere", "--port", "0"], "nowhere does not exist"),
    (["serve", "pelton-tiny", "--port", "99999"], "port must be between 0 and 65535"),
    (["serve", "pelton-tiny", "--port", "0", "--host", "no.such.host.invalid"], "cannot be resolved"),
    (["serve", "pelton-tiny", "--port", "0", "--port-file", "/nonexistent/port"], "port_file"),
    (["serve", "pelton-tiny", "--port", "0", "--chat-template", "/nonexistent/t"], "chat template"),
    (["build", "./nowhere", "-o", "out"], "nowhere does not exist"),
    (["build", "pelton-tiny", "-o", "/proc/nowhere/out"], "cannot be written"),
    (["build", "pelton-tiny", "-o", "out", "--max-batch-size", "0"], "max_batch_size"),
    (["convert", "pelton-tiny", "-o", "out", "--tp-size", "3"], "tp_size must divide"),
    (["engine", "show", "./nowhere"], "not an engine directory"),
    (["plan", "./nowhere"], "nowhere does not exist"),
    (["plan", "pelton-tiny", "--gpu", "abacus"], "gpu must be one of"),
    (["bench", "throughput", "--batch-sizes", "0"], "batch_sizes must be at least 1"),
    (["bench", "throughput", "--input-len", "5000"], "input_len"),
    (["bench", "serve", "http://127.0.0.1:9"], "cannot reach"),
    (["bench", "report", "/nonexistent.json"], "cannot be read"),
])
def test_bad_values_are_one_line(run, tmp_path, monkeypatch, argv, match):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*argv)
    assert (code, out) == (1, "")
    assert is_one_error(err, match)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("given", "match"), [(b"", "prompt is empty"), (b"\xff\xfe", "surrogates|not utf-8 text")])
def test_a_bad_prompt_on_standard_input(engine_dir, given, match):
    done = subprocess.run([*PELTON, "generate", str(engine_dir)], input=given, capture_output=True, timeout=100)
    assert done.returncode == 1
    assert is_one_error(done.stderr.decode(), match)


def test_a_prompt_on_closed_standard_input(engine_dir):
    done = pelton("generate", str(engine_dir), stdin=None, preexec_fn=lambda: os.close(0))
    assert done.returncode == 1
    assert is_one_error(done.stderr, "standard input is closed")


# Damaged and missing files.


def spoil_weights(folder):
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(1_000_000)


def spoil_header(folder):
    (folder / "model.safetensors").write_bytes(os.urandom(3000))


def lose_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


def spoil_tokenizer(folder):
    (folder / "tokenizer.json").write_text("{")


def lose_weights(folder):
    (folder / "model.safetensors").unlink()


def spoil_config(folder):
    (folder / "config.json").write_text("{")


def change_architecture(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["NoSuchModel"]}))


@pytest.mark.parametrize("command", ["generate", "serve"])
@pytest.mark.parametrize(("spoil", "match"), [
    (spoil_weights, "model.safetensors: damaged: truncated"), (spoil_header, "model.safetensors: damaged"),
    (lose_tokenizer, "no tokenizer"), (spoil_tokenizer, "tokenizer.json"), (lose_weights, "safetensors"),
    (spoil_config, "config.json: not valid JSON"), (change_architecture, "'NoSuchModel' is not supported; supported"),
])
def test_a_spoilt_checkpoint_is_named(run, checkpoint, command, spoil, match):
    spoil(checkpoint)
    code, out, err = run(command, str(checkpoint), *(["x"] if command == "generate" else ["--port", "0"]))
    assert (code, out) == (1, "")
    assert is_one_error(err, match)


@pytest.mark.parametrize(("name", "match"), [
    ("weights-0.safetensors", r"weights-0\.safetensors"), ("tokenizer/tokenizer.json", r"tokenizer\.json"),
    ("engine.json", r"engine\.json")])
@pytest.mark.parametrize("command", ["generate", "serve"])
def test_a_damaged_engine_is_refused_with_the_mend(run, engine_dir, tmp_path, command, name, match):
    damaged = shutil.copytree(engine_dir, tmp_path / "engine")
    content = bytearray((damaged / name).read_bytes())
    content[len(content) // 2] ^= 4
    (damaged / name).write_bytes(content)
    code, out, err = run(command, str(damaged), *(["x"] if command == "generate" else ["--port", "0"]))
    assert (code, out) == (1, "")
    assert is_one_error(err, match)
    assert "pelton build" in err


@pytest.mark.parametrize(("options", "match"), [
    (["--tokens-per-block", "16"], "tokens_per_block was fixed at build to 64, 16 was asked for; rebuild it: pelton "),
    (["--dtype", "float16"], "dtype was fixed at build"), (["--max-seq-len", "100"], "max_seq_len was fixed"),
    (["--max-batch-size", "4000"], "max_batch_size"),
])
def test_an_engine_built_with_other_options_is_refused_with_the_mend(run, engine_dir, options, match):
    code, _, err = run("serve", str(engine_dir), "--port", "0", *options)
    assert code == 1
    assert is_one_error(err, match)


@pytest.mark.parametrize("command", ["generate", "serve"])
def test_a_cache_that_cannot_be_written(run, tmp_path, monkeypatch, command):
    (tmp_path / "file").touch()
    monkeypatch.setenv("PELTON_CACHE", str(tmp_path / "file"))
    code, _, err = run(command, "pelton-tiny", *(["x"] if command == "generate" else ["--port", "0"]))
    assert code == 1
    assert is_one_error(err, "cannot be written .*set PELTON_CACHE to a folder that can be written")


def test_a_taken_port_is_told_before_anything_is_built(run, tmp_path, monkeypatch):
    monkeypatch.setenv("PELTON_CACHE", str(tmp_path / "cache"))
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        code, _, err = run("serve", "pelton-tiny", "--port", str(taken.getsockname()[1]))
    assert code == 1
    assert is_one_error(err, "is taken: choose another, or --port 0")
    assert not (tmp_path / "cache").exists()


# What works, and as JSON.


def test_generate(run, engine_dir):
    code, out, err = run("generate", str(engine_dir), "def f(", "--max-tokens", "8")
    assert code == 0
    assert out.strip()
    assert re.search(r"\[\d+ tokens in, 8 out \(length\), first after \d+ ms", err)
    code, told, err = run("generate", str(engine_dir), "def f(", "--max-tokens", "8", "--json")
    told = json.loads(told)
    assert (code, err) == (0, "")
    assert out == told["text"]
    assert (len(told["token_ids"]), told["finish_reason"]) == (8, "length")
    assert told["ttft_ms"] > 0


def test_generate_reads_standard_input_and_leaves_a_closed_pipe_quietly(engine_dir):
    command = " ".join([*PELTON, "generate", str(engine_dir), "--max-tokens", "300", "--temperature", "1"])
    done = subprocess.run(["bash", "-o", "pipefail", "-c", f"printf 'import os' | {command} | head -c 1"],
                          capture_output=True, text=True, timeout=100)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr


def test_ctrl_c_ends_generate_without_a_traceback(engine_dir):
    with subprocess.Popen([*PELTON, "generate", str(engine_dir), "x", "--max-tokens", "1900", "--temperature", "1"],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")


def test_chat_and_seeds(run, engine_dir):
    argv = ["generate", str(engine_dir), "import", "--chat", "--json", "--max-tokens", "9", "--temperature", "1"]
    first, again, other = (json.loads(run(*argv, "--seed", seed)[1]) for seed in ("1", "1", "2"))
    assert first["token_ids"] == again["token_ids"] != other["token_ids"]
    assert first["num_prompt_tokens"] > 2


def test_json_of_each_command_parses(run, engine_dir, tmp_path):
    tiny, sizes = "pelton-tiny", ["--batch-sizes", "1", "--input-len", "4", "--output-len", "3", "--num-runs", "1"]
    told = {}
    for argv in (["plan", tiny, "--gpu", "H200"], ["convert", tiny, "-o", str(tmp_path / "checkpoint")],
                 ["build", tiny, "-o", str(tmp_path / "engine")], ["engine", "show", str(tmp_path / "engine")],
                 ["bench", "throughput", str(engine_dir), *sizes], ["doctor"]):
        code, out, err = run(*argv, "--json")
        told[argv[0]] = json.loads(out)
        assert code == 0 or argv[0] == "doctor", err
    assert told["build"]["engine"] == str(tmp_path / "engine")
    assert told["engine"]["model"]["architecture"] == "LlamaForCausalLM"
    assert told["bench"]["cells"][0]["metrics"]["output_tokens"]["distribution"]["mean"] == 3


# Without torch.


@pytest.fixture(scope="module")
def without_torch(tmp_path_factory):
    """Environment of an interpreter that has neither torch nor what else the engine's extra brings."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "sitecustomize.py").write_text(
        "import sys\n"
        "class Blocker:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('torch', 'triton', 'numpy', 'safetensors', 'xgrammar'):\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Blocker())\n")
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


@pytest.mark.parametrize("command", LIGHT)
def test_what_needs_no_torch_helps_without_it(without_torch, command):
    done = pelton(*command.split(), "--help", env=without_torch)
    assert (done.returncode, done.stderr) == (0, "")


def test_plan_doctor_and_show_work_without_torch(without_torch, engine_dir):
    for argv in (["plan", "pelton-tiny", "--gpu", "H100 SXM", "--json"], ["engine", "show", str(engine_dir), "--json"]):
        done = pelton(*argv, env=without_torch)
        assert done.returncode == 0, done.stderr
        json.loads(done.stdout)
    assert json.loads(pelton("doctor", "--json", env=without_torch).stdout)


@pytest.mark.parametrize("cached", [True, False], ids=["built", "not built"])
@pytest.mark.parametrize("argv", [["serve", "pelton-tiny", "--port", "0"], ["generate", "pelton-tiny", "x"],
                                  ["bench", "throughput", "pelton-tiny"]], ids=" ".join)
def test_what_needs_torch_says_how_to_get_it(without_torch, engine_dir, tmp_path, argv, cached):
    env = without_torch if cached else {**without_torch, "PELTON_CACHE": str(tmp_path)}
    done = pelton(*argv, env=env)
    assert (done.returncode, done.stdout) == (1, "")
    assert is_one_error(done.stderr, r"(torch|numpy|safetensors), which is not installed; get it with pip install "
                                     r"'pelton\[engine\]'")
