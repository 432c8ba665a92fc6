"""A hub of this machine: the few routes of huggingface.co that fetching a model takes.

Source of the routes: huggingface_hub, hf_api.py (model_info) and file_download.py (hf_hub_url,
get_hf_file_metadata).
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Hub:
    """Repositories by name; each knows its branches and tags, and a folder for each commit."""

    branches: dict[str, dict[str, str]] = field(default_factory=dict)
    commits: dict[tuple[str, str], Path] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    url: str = ""

    def add(self, repository: str, folder: Path, branch: str = "main") -> str:
        """A commit of this content at the head of a branch; returns its name."""
        commit = hashlib.sha1(f"{repository} {branch} {folder}".encode()).hexdigest()
        self.branches.setdefault(repository, {})[branch] = commit
        self.commits[repository, commit] = folder
        return commit

    def find(self, repository: str, revision: str) -> tuple[str, Path] | None:
        """The commit of a branch, or of itself, and its folder."""
        commit = self.branches.get(repository, {}).get(revision, revision)
        folder = self.commits.get((repository, commit))
        return (commit, folder) if folder else None


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub that answers at `url` until the end."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def _answer(self) -> None:
            path = self.path.partition("?")[0]
            hub.requests.append(f"{self.command} {path}")
            if path.startswith("/api/models/"):
                name, _, revision = path.removeprefix("/api/models/").partition("/revision/")
                self._answer_info(name, revision or "main")
            else:
                name, _, rest = path.removeprefix("/").partition("/resolve/")
                revision, _, file = rest.partition("/")
                self._answer_file(name, revision, file)

        def _answer_info(self, name: str, revision: str) -> None:
            if name not in hub.branches:
                return self._send(HTTPStatus.NOT_FOUND, b"{}", {"X-Error-Code": "RepoNotFound"})
            if (found := hub.find(name, revision)) is None:
                return self._send(HTTPStatus.NOT_FOUND, b"{}", {"X-Error-Code": "RevisionNotFound"})
            commit, folder = found
            files = [{"rfilename": path.name} for path in sorted(folder.iterdir())]
            info = {"id": name, "modelId": name, "sha": commit, "private": False, "tags": [], "siblings": files}
            return self._send(HTTPStatus.OK, json.dumps(info).encode(), {"Content-Type": "application/json"})

        def _answer_file(self, name: str, revision: str, file: str) -> None:
            found = hub.find(name, revision)
            if found is None or not (found[1] / file).is_file():
                return self._send(HTTPStatus.NOT_FOUND, b"", {"X-Error-Code": "EntryNotFound"})
            content = (found[1] / file).read_bytes()
            etag = hashlib.sha256(content).hexdigest()
            return self._send(HTTPStatus.OK, content, {"ETag": f'"{etag}"', "X-Repo-Commit": found[0]})

        def _send(self, status: HTTPStatus, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
