"""A Hugging Face hub on loopback: what snapshot downloads ask for, and the ways in which they fail.

Large files live behind a redirect to a "cdn", with their hash and size in the headers of the redirect, as LFS files do
on the real hub; small ones are answered at once.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LFS_SUFFIXES = (".safetensors", ".bin", ".model")


@dataclass
class Repository:
    files: dict[str, bytes]
    is_gated: bool = False
    drops: Counter[str] = field(default_factory=Counter)
    """How many downloads of a file break off half-way."""
    sha: str = COMMIT


class FakeHub:
    """Serves `repositories`; remembers each request as "METHOD path" in `requests`."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        self.failure: int | None = None
        """A status with which every request is answered."""
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def downloads(self) -> list[str]:
        """Names of the files whose content was asked for, each time it was."""
        found = [re.fullmatch(r"GET /(?:cdn/[^/]+/[^/]+|[^/]+/[^/]+/resolve/[^/]+)/(.+)", line)
                 for line in self.requests]
        return [match[1] for match in found if match]

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._route()

    def do_GET(self) -> None:
        self._route()

    def _route(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        if self.hub.failure is not None:
            return self._error(self.hub.failure, "")
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path):
            return self._api(*match.groups())
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._resolve(*match.groups())
        if match := re.fullmatch(r"/cdn/([^/]+/[^/]+)/(.+)", path):
            return self._content(self.hub.repositories[match[1]], match[2])
        return self._error(404, "")

    def _repository(self, name: str, revision: str | None) -> Repository | None:
        repository = self.hub.repositories.get(name)
        if repository is None:
            self._error(404, "RepoNotFound")
        elif revision not in (None, "main", repository.sha):
            self._error(404, "RevisionNotFound")
        else:
            return repository
        return None

    def _api(self, name: str, what: str | None, revision: str | None) -> None:
        repository = self._repository(name, revision)
        if repository is None:
            return
        if what == "tree":
            return self._json([_tree_item(path, content) for path, content in repository.files.items()])
        self._json({"id": name, "sha": repository.sha, "private": False, "tags": [],
                    "gated": "manual" if repository.is_gated else False,
                    "siblings": [{"rfilename": path} for path in repository.files]})

    def _resolve(self, name: str, revision: str, file: str) -> None:
        repository = self._repository(name, revision)
        if repository is None:
            return
        if repository.is_gated:
            return self._error(403, "GatedRepo")
        if file not in repository.files:
            return self._error(404, "EntryNotFound")
        if not file.endswith(LFS_SUFFIXES):
            return self._content(repository, file)
        content = repository.files[file]
        self._answer(302, b"", {"Location": f"{self.hub.endpoint}/cdn/{name}/{file}",
                                "X-Repo-Commit": repository.sha, "X-Linked-Size": str(len(content)),
                                "X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"'})

    def _content(self, repository: Repository, file: str) -> None:
        content = repository.files[file]
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": repository.sha,
                   "Accept-Ranges": "bytes"}
        status, start = 200, 0
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            status, start = 206, int(match[1])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if self.command == "GET" and repository.drops[file]:
            repository.drops[file] -= 1
            self._break_off(content[start:], headers)
            return
        self._answer(status, content[start:], headers)

    def _break_off(self, content: bytes, headers: dict[str, str]) -> None:
        self._start(200, len(content), headers)
        self.wfile.write(content[: len(content) // 2])
        self.wfile.flush()
        self.close_connection = True

    def _error(self, status: int, code: str) -> None:
        self._answer(status, b"{}", {"X-Error-Code": code} if code else {})

    def _json(self, value: Any) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self._start(status, len(content), headers)
        if self.command != "HEAD":
            self.wfile.write(content)

    def _start(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()


def _tree_item(path: str, content: bytes) -> dict[str, Any]:
    item: dict[str, Any] = {"type": "file", "path": path, "size": len(content),
                            "oid": hashlib.sha1(content).hexdigest()}
    if path.endswith(LFS_SUFFIXES):
        item["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return item
