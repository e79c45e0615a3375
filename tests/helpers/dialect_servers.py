"""Small servers that speak Triton's, KServe's and Ollama's dialects as strictly as the real ones, and can misbehave.

They know nothing of the benchmark: what they take and send is written from the servers' own documentation.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

NATURAL_LENGTH = 2  # tokens after which an answer ends by itself

TRTLLM_INPUTS = {"text_input": ("BYTES", [-1, 1]), "max_tokens": ("INT32", [-1, 1]), "min_tokens": ("INT32", [-1, 1]),
                 "bad_words": ("BYTES", [-1, -1]), "stop_words": ("BYTES", [-1, -1]), "end_id": ("INT32", [-1, 1]),
                 "top_k": ("INT32", [-1, 1]), "temperature": ("FP32", [-1, 1]), "stream": ("BOOL", [-1, 1]),
                 "exclude_input_in_output": ("BOOL", [-1, 1]), "return_num_input_tokens": ("BOOL", [-1, 1]),
                 "return_num_output_tokens": ("BOOL", [-1, 1])}
VLLM_INPUTS = {"text_input": ("BYTES", [1]), "stream": ("BOOL", [1]), "sampling_parameters": ("BYTES", [1]),
               "exclude_input_in_output": ("BOOL", [1]), "return_finish_reason": ("BOOL", [1]),
               "return_num_input_tokens": ("BOOL", [1]), "return_num_output_tokens": ("BOOL", [1])}
PLAIN_INPUTS = {"text_input": ("BYTES", [1])}
BACKENDS = {"trtllm": TRTLLM_INPUTS, "vllm": VLLM_INPUTS, "plain": PLAIN_INPUTS}
PYTHON_TYPES = {"BYTES": str, "INT32": int, "FP32": (int, float), "BOOL": bool}


class Wrong(Exception):
    """A request that the real server would refuse with status 400."""


class Server:
    """A running stand-in.

    Attributes:
        bodies: generation requests in order of arrival.
        fault: (number of the request, body) -> None, "500", "hang", "drop", "malformed", "error" or "empty".
    """

    def __init__(self, routes: Callable[[Server, str, str, Any], Any], count: Callable[[str], int]) -> None:
        self.routes = routes
        self.count = count
        self.bodies: list[dict[str, Any]] = []
        self.fault: Callable[[int, dict[str, Any]], str | None] = lambda number, body: None
        self.released = threading.Event()
        self.url = ""


class Stream:
    """Parts of a streamed answer."""

    def __init__(self, parts: Iterator[bytes], content_type: str, fault: str | None) -> None:
        self.parts, self.content_type, self.fault = parts, content_type, fault


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer("GET", None)

    def do_POST(self) -> None:
        self._answer("POST", json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _answer(self, method: str, body: Any) -> None:
        stand_in: Server = self.server.stand_in
        try:
            found = stand_in.routes(stand_in, method, self.path, body)
        except Wrong as error:
            return self._whole(400, {"error": str(error)})
        if found is None:
            return self._whole(404, {"error": "not found"})
        if isinstance(found, Stream):
            return self._stream(found)
        if found in ("500", "hang", "drop"):
            return self._fail(found)
        return self._whole(200, found)

    def _whole(self, status: int, data: Any) -> None:
        body = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _fail(self, fault: str) -> None:
        if fault == "500":
            return self._whole(500, {"error": "out of order"})
        if fault == "hang":
            self.server.stand_in.released.wait(30)
        self.close_connection = True

    def _stream(self, stream: Stream) -> None:
        self.send_response(200)
        self.send_header("Content-Type", stream.content_type)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number, part in enumerate(stream.parts):
            if number == 1 and stream.fault == "drop":
                self.close_connection = True
                return
            self.wfile.write(b"%x\r\n" % len(part) + part + b"\r\n")
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")


class _HTTPServer(ThreadingHTTPServer):
    daemon_threads = True
    stand_in: Server

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away in the middle of an answer are part of the tests."""


@contextmanager
def serve(routes: Callable[[Server, str, str, Any], Any], count: Callable[[str], int]) -> Iterator[Server]:
    """A stand-in with these routes; `count` gives the tokens of a text, special tokens included."""
    stand_in = Server(routes, count)
    httpd = _HTTPServer(("127.0.0.1", 0), _Handler)
    httpd.stand_in = stand_in
    stand_in.url = f"http://127.0.0.1:{httpd.server_address[1]}"
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield stand_in
    finally:
        stand_in.released.set()
        httpd.shutdown()
        httpd.server_close()
        thread.join()


def triton(backend: str) -> Callable[[Server, str, str, Any], Any]:
    """Routes of a Triton server with one model that generates, `ensemble`, and one that does not."""
    inputs = BACKENDS[backend]

    def routes(server: Server, method: str, path: str, body: Any) -> Any:
        if (method, path) == ("GET", "/v2"):
            return {"name": "triton", "version": "2.60.0", "extensions": ["generate"]}
        if (method, path) == ("POST", "/v2/repository/index"):
            return [{"name": n, "version": "1", "state": "READY"} for n in ("ensemble", "preprocessing")] + [
                {"name": "broken", "version": "1", "state": "UNAVAILABLE", "reason": "no memory"}]
        if method == "GET" and path == "/v2/models/preprocessing":
            return {"name": "preprocessing", "inputs": [{"name": "QUERY", "datatype": "BYTES", "shape": [-1]}]}
        if method == "GET" and path == "/v2/models/ensemble":
            return {"name": "ensemble", "versions": ["1"], "platform": "ensemble", "inputs": [
                {"name": name, "datatype": kind, "shape": shape} for name, (kind, shape) in inputs.items()],
                "outputs": [{"name": "text_output", "datatype": "BYTES", "shape": [-1, -1]}]}
        if method == "POST" and path.startswith("/v2/models/ensemble/"):
            return _triton_answer(server, backend, path.rsplit("/", 1)[1], body)
        return None

    return routes


def _triton_answer(server: Server, backend: str, verb: str, body: dict[str, Any]) -> Any:
    server.bodies.append(body)
    fault = server.fault(len(server.bodies), body)
    if fault in ("500", "hang") or (fault == "drop" and verb != "generate_stream"):
        return fault
    fields = _read_tensors(backend, body) if verb == "infer" else _read_fields(backend, body)
    num_out, reason = _num_output(backend, fields)
    num_out = 0 if fault == "empty" else num_out
    rows = [{"text_output": f" word{k}", **_counts(server, fields, 1)} for k in range(num_out)]
    if verb == "generate_stream":
        rows = rows or [{"text_output": "", **_counts(server, fields, 0)}]
        if fields.get("return_finish_reason"):
            rows[-1]["finish_reason"] = reason
        return Stream(_events(rows, fault), "text/event-stream; charset=utf-8", fault)
    text = "".join(row["text_output"] for row in rows)
    if fields.get("exclude_input_in_output") is not True:
        text = fields["text_input"] + text
    whole = {"model_name": "ensemble", "model_version": "1", "text_output": text, **_counts(server, fields, num_out)}
    if fault == "malformed":
        return {"model_name": "ensemble"}
    if verb != "infer":
        return whole
    kinds = {str: "BYTES", int: "UINT32"}
    return {"model_name": "ensemble", "outputs": [
        {"name": name, "datatype": kinds[type(value)], "shape": [1, 1], "data": [value]}
        for name, value in whole.items() if not name.startswith("model_")]}


def _events(rows: list[dict[str, Any]], fault: str | None) -> Iterator[bytes]:
    for number, row in enumerate(rows):
        if number == 1 and fault == "malformed":
            yield b'data: {"model_name": \n\n'
        elif number == 1 and fault == "error":
            yield b'data: {"error": "worker lost"}\n\n'
        else:
            yield b"data: " + json.dumps({"model_name": "ensemble", "model_version": "1", **row}).encode() + b"\n\n"


def _read_fields(backend: str, body: dict[str, Any]) -> dict[str, Any]:
    for name, value in body.items():
        kind = BACKENDS[backend].get(name, (None,))[0]
        if kind is not None and (not isinstance(value, PYTHON_TYPES[kind]) or (kind == "INT32" and value is True)):
            raise Wrong(f"unable to parse {name!r}: wrong type")
        if kind is None and not isinstance(value, (str, int, float, bool, dict)):
            raise Wrong(f"parameter {name!r} has invalid type")
    return {**body, **body.get("parameters", {})}


def _read_tensors(backend: str, body: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for tensor in body["inputs"]:
        kind, shape = BACKENDS[backend].get(tensor["name"], (None, None))
        if kind != tensor["datatype"] or len(shape) != len(tensor["shape"]):
            raise Wrong(f"unexpected inference input {tensor['name']!r}")
        if any(size not in (-1, given) for size, given in zip(shape, tensor["shape"])) or len(tensor["data"]) != 1:
            raise Wrong(f"unexpected shape for input {tensor['name']!r}")
        found[tensor["name"]] = tensor["data"][0]
    return {**found, **body.get("parameters", {})}


def _num_output(backend: str, fields: dict[str, Any]) -> tuple[int, str]:
    if "text_input" not in fields:
        raise Wrong("expected input text_input")
    if backend == "vllm":
        fields = json.loads(fields["sampling_parameters"])
    if "max_tokens" not in fields:
        raise Wrong("expected input max_tokens")
    natural = max(NATURAL_LENGTH, fields.get("min_tokens", 0))
    if backend == "vllm" and fields.get("ignore_eos"):
        natural = fields["max_tokens"]
    return min(natural, fields["max_tokens"]), "length" if natural >= fields["max_tokens"] else "stop"


def _counts(server: Server, fields: dict[str, Any], num_out: int) -> dict[str, int]:
    found = {}
    if fields.get("return_num_input_tokens"):
        found["num_input_tokens"] = server.count(fields["text_input"])
    if fields.get("return_num_output_tokens"):
        found["num_output_tokens"] = num_out
    return found


def ollama(count_chat: Callable[[list[dict[str, str]]], int]) -> Callable[[Server, str, str, Any], Any]:
    """Routes of an Ollama server with one model, `tiny:latest`."""
    def routes(server: Server, method: str, path: str, body: Any) -> Any:
        if (method, path) == ("GET", "/api/tags"):
            return {"models": [{"name": "tiny:latest", "model": "tiny:latest", "size": 1}]}
        if method != "POST" or path not in ("/api/chat", "/api/generate"):
            return None
        if body["model"] != "tiny:latest":
            return None
        return _ollama_answer(server, count_chat, path, body)

    return routes


def _ollama_answer(server: Server, count_chat: Callable[[list[dict[str, str]]], int], path: str,
                   body: dict[str, Any]) -> Any:
    server.bodies.append(body)
    fault = server.fault(len(server.bodies), body)
    if fault in ("500", "hang") or (fault == "drop" and not body["stream"]):
        return fault
    if path == "/api/chat":
        num_in = count_chat(body["messages"])
    elif body.get("raw") is not True:
        raise Wrong("the template would be put around this prompt")
    else:
        num_in = server.count(body["prompt"])
    num_out = 0 if fault == "empty" else body["options"]["num_predict"]
    def part(text: str) -> dict[str, Any]:
        said = {"message": {"role": "assistant", "content": text}} if path == "/api/chat" else {"response": text}
        return {"model": "tiny:latest", "created_at": "2026-01-31T00:00:00Z", **said, "done": False}

    last = {"done": True, "done_reason": "length", "prompt_eval_count": num_in, "eval_count": num_out}
    words = [f" word{k}" for k in range(num_out)]
    if not body["stream"]:
        return {} if fault == "malformed" else {**part("".join(words)), **last}
    lines = [part(word) for word in words] + [{**part(""), **last}]
    rows = [json.dumps(line).encode() + b"\n" for line in lines]
    if fault == "malformed":
        rows[1:2] = [b'{"model": \n']
    if fault == "error":
        rows[1:2] = [b'{"error": "worker lost"}\n']
    return Stream(iter(rows), "application/x-ndjson", fault)
