"""The whole path on this machine: doctor, build, serve, one streaming question, a sweep, a report.

Everything goes to out/demo. The server gets a free port and is stopped at the end, whatever happens before.
"""

from __future__ import annotations

import http.client
import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

OUT = Path("out/demo")
PELTON = str(Path(sys.executable).with_name("pelton"))
QUESTION = '''def read_lines(path):
    """Return the lines of a text file, without their line ends."""
'''
MAX_TOKENS = 96
START_TIMEOUT_S = 90
SWEEP_BUDGET_S = 150  # it takes about a minute; each cell has a share by its size, and small ones need the slack
SWEEP = ("--concurrency", "1,2,4,8", "--prompt-tokens", "16,64,256,900", "--output-tokens", "48",
         "--num-requests", "20", "--duration-budget", str(SWEEP_BUDGET_S))


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a kill ends the server, too
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    try:
        run("doctor")
        run("build", "pelton-tiny", "-o", str(OUT / "engine"))
        with server(OUT / "engine") as port:
            ask(port)
            run("bench", "sweep", f"http://127.0.0.1:{port}", *SWEEP, "--output-dir", str(OUT))
    except DemoError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: stopped", file=sys.stderr)
        return 130
    print(f"\nThe report:  {(OUT / 'report.html').resolve()}\nThe figures: {(OUT / 'results.json').resolve()}")
    return 0


class DemoError(Exception):
    """A step failed; the text says which."""


def run(*arguments: str) -> None:
    """Runs a pelton command and shows it as one would type it."""
    print(f"\n$ pelton {shlex.join(arguments)}", flush=True)
    code = subprocess.run([PELTON, *arguments], check=False, stdin=subprocess.DEVNULL).returncode
    if code:
        raise DemoError(f"`pelton {arguments[0]}` ended with exit code {code}")


@contextmanager
def server(engine: Path) -> Iterator[int]:
    """Serves an engine while the block runs; gives the port."""
    port_file, log = OUT / "port", OUT / "server.log"
    arguments = ["serve", str(engine), "--port", "0", "--port-file", str(port_file),
                 "--served-model-name", "pelton-tiny"]
    print(f"\n$ pelton {shlex.join(arguments)} &", flush=True)
    started = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen([PELTON, *arguments], stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        while not port_file.exists():
            if process.poll() is not None:
                raise DemoError(f"the server ended with exit code {process.returncode}:\n{log.read_text()}")
            if time.monotonic() - started > START_TIMEOUT_S:
                raise DemoError(f"the server was not ready after {START_TIMEOUT_S} s; see {log}")
            time.sleep(0.05)
        port = int(port_file.read_text())
        print(f"ready on port {port} after {time.monotonic() - started:.1f} s", flush=True)
        yield port
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def ask(port: int) -> None:
    """Has the model complete a function, and prints each piece of text as it arrives."""
    print("\nA question, answered as it is generated (pelton-tiny is a small model: mind the style, not the sense):\n")
    print(f"\033[2m{QUESTION}\033[0m" if sys.stdout.isatty() else QUESTION, end="", flush=True)
    body = {"model": served_model(port), "prompt": QUESTION, "max_tokens": MAX_TOKENS, "temperature": 0,
            "stop": ["\ndef ", "\nclass "], "stream": True}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    started = time.monotonic()
    arrivals = []
    for text in stream(connection, body):
        arrivals.append(time.monotonic() - started)
        print(text, end="", flush=True)
    connection.close()
    if not arrivals:
        raise DemoError("the answer was empty")
    print(f"\n\nfirst text after {arrivals[0] * 1e3:.0f} ms, {len(arrivals)} pieces in {arrivals[-1]:.2f} s",
          flush=True)


def served_model(port: int) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/v1/models")
    models = json.load(connection.getresponse())
    connection.close()
    return models["data"][0]["id"]


def stream(connection: http.client.HTTPConnection, body: dict[str, object]) -> Iterator[str]:
    """Texts of a streamed completion: server-sent events, one JSON object each, closed by [DONE]."""
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        raise DemoError(f"the server answered {response.status}: {response.read(500).decode()}")
    for line in response:
        data = line.decode().strip().removeprefix("data:").strip()
        if data == "[DONE]":
            return
        if data and (choices := json.loads(data)["choices"]) and choices[0]["text"]:
            yield choices[0]["text"]


if __name__ == "__main__":
    sys.exit(main())
