"""The HTTP server on a free loopback port, in a thread of the test's process."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from pathlib import Path
from typing import Any

import httpx

from pelton.config import ServeConfig
from pelton.server.app import create_app
from pelton.server.http import HttpServer
from pelton.server.launch import bind
from pelton.server.state import EngineClientLike
from pelton.tokenizer.tokenizer import Tokenizer

MODEL = "fake-model"


class LiveServer:
    """Serves an engine client until `close`."""

    def __init__(self, engine: EngineClientLike, tokenizer: Tokenizer, tokenizer_dir: Path, **config: Any):
        self.engine = engine
        self._listener = bind("127.0.0.1", 0)
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.app = create_app(engine, tokenizer, ServeConfig(**config), model_name=MODEL, tokenizer_dir=tokenizer_dir)
        started = threading.Event()
        self._server = HttpServer(self.app, self._listener, on_started=started.set)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert started.wait(20)
        self.http = httpx.Client(base_url=self.url, timeout=30, trust_env=False)

    def _run(self) -> None:
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._server.run_until_stopped())

    def stop(self) -> None:
        """Begins the graceful end, as SIGTERM does."""
        self._server.stop()

    def close(self) -> None:
        self.http.close()
        self.stop()
        self._thread.join(20)
        assert not self._thread.is_alive()
        self._listener.close()

    def post(self, route: str, body: dict[str, Any] | bytes) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.http.post(route, content=content, headers={"content-type": "application/json"})

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def metrics(self) -> dict[tuple[str, ...], float]:
        """(name, label values...) -> value, as Prometheus' own parser reads them."""
        from prometheus_client.parser import text_string_to_metric_families

        families = text_string_to_metric_families(self.http.get("/metrics").text)
        return {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}
