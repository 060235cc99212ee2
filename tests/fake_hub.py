"""A hub on this machine, with what can go wrong between it and a reader: its list of files, its redirects, ranges and checksums.

It answers what a hub answers: model information with sizes and checksums, HEAD and GET of files as redirects to another host (as
contents are served from elsewhere, and must not be asked for with a token), ranges there, and errors with the hub's own headers.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import close_session, constants

from entmtp_local.hub import download

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def content(n_bytes: int = 200_000, *, n_heads: int | None = 1, seed: str = "") -> bytes:
    """Bytes that begin as a GGUF file does; `n_heads` MTP blocks are announced, none of them mentioned with None."""
    start = b"GGUF" + struct.pack("<IQQ", 3, 0, 2)
    if n_heads is not None:
        key = b"qwen35.nextn_predict_layers"
        start += struct.pack("<Q", len(key)) + key + struct.pack("<II", 4, n_heads)
    start += b"tokenizer.ggml.tokens"
    rest = hashlib.shake_256(seed.encode()).digest(max(0, n_bytes - len(start)))
    return start + rest


@dataclass
class Repo:
    """A repository of the fake hub.

    Args:
        token: that is needed to read it.
        gated: whether its files need access that nobody has.
        listed: overrides of what the list says of a file.
    """

    files: dict[str, bytes]
    commit: str = COMMIT
    token: str | None = None
    gated: bool = False
    listed: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    range: str | None
    token: str | None


@dataclass
class FakeHub:
    """What it holds, how it misbehaves, and what it was asked.

    Args:
        fail: a status for the next requests whose path contains the text: {text: [statuses]}.
        slow: seconds before requests whose path contains the text are answered.
        break_after: bytes of a content after which its connection is closed, each time.
        stall_after: bytes after which nothing more comes for `stall_seconds`, or until `released`.
        knows_ranges: whether ranges of contents are answered; else all of it is sent.
        wrong_ranges: contents are sent from their beginning whatever part was asked for.
        spoil: changes contents on their way.
    """

    repos: dict[str, Repo] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    fail: dict[str, list[int]] = field(default_factory=dict)
    slow: dict[str, float] = field(default_factory=dict)
    break_after: int | None = None
    stall_after: int | None = None
    stall_seconds: float = 30.0
    knows_ranges: bool = True
    wrong_ranges: bool = False
    spoil: Callable[[bytes], bytes] = bytes
    n_sent: int = 0
    released: threading.Event = field(default_factory=threading.Event)
    endpoint: str = ""
    elsewhere: str = ""

    def ranges(self) -> list[int]:
        """Where each request for a content began, those for its beginning only left out."""
        asked = [request for request in self.requests if request.method == "GET" and request.path.startswith("/content/")]
        starts = [re.fullmatch(r"bytes=(\d+)-(\d*)", request.range or "bytes=0-") for request in asked]
        return [int(start[1]) for start in starts if start is not None and not start[2]]

    def find(self, digest: str) -> bytes:
        for repo in self.repos.values():
            for data in repo.files.values():
                if hashlib.sha256(data).hexdigest() == digest:
                    return data
        raise KeyError(digest)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, *_: Any) -> None: ...

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        self.hub.requests.append(Request(self.command, path, self.headers.get("Range"), token))
        for text, statuses in self.hub.fail.items():
            if text in path and statuses:
                status = statuses.pop(0)
                return self._error(status, "EntryNotFound" if status == 404 else None)
        for text, seconds in self.hub.slow.items():
            if text in path:
                self.hub.released.wait(seconds)
        if path.startswith("/content/"):
            return self._content(path.removeprefix("/content/"))
        match = re.fullmatch(r"/(?P<api>api/models/)?(?P<repo>[^/]+/[^/]+)(?:/resolve/(?P<revision>[^/]+)/(?P<file>.+))?", path)
        repo = self.hub.repos.get(match["repo"]) if match else None
        if match is None or repo is None or (repo.token is not None and token is None):
            return self._error(401, "RepoNotFound")
        if repo.token is not None and token != repo.token:
            return self._error(401, None, "Invalid credentials in Authorization header")
        if match["api"]:
            return self._json(self._about(match["repo"], repo))
        if repo.gated:
            return self._error(403 if token else 401, "GatedRepo")
        if match["file"] not in repo.files:
            return self._error(404, "EntryNotFound")
        digest = hashlib.sha256(repo.files[match["file"]]).hexdigest()
        self.send_response(302)
        self.send_header("Location", f"{self.hub.elsewhere}/content/{digest}")
        self.send_header("X-Repo-Commit", repo.commit)
        self.send_header("X-Linked-Etag", f'"{digest}"')
        self.send_header("X-Linked-Size", str(len(repo.files[match["file"]])))
        self.send_header("ETag", f'"{digest}"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _about(self, name: str, repo: Repo) -> dict[str, Any]:
        siblings = []
        for file, data in repo.files.items():
            about: dict[str, Any] = {"rfilename": file, "size": len(data), "blobId": hashlib.sha1(data).hexdigest()}
            if file.endswith(".gguf"):
                about["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
            siblings.append(about | repo.listed.get(file, {}))
        return {"id": name, "modelId": name, "sha": repo.commit, "private": False, "tags": [], "siblings": siblings}

    def _content(self, digest: str) -> None:
        data = self.hub.spoil(self.hub.find(digest))
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        start, end = 0, len(data)
        if asked and self.hub.knows_ranges:
            start, end = (
                0 if self.hub.wrong_ranges else int(asked[1]),
                min(len(data), int(asked[2]) + 1 if asked[2] else len(data)),
            )
            if start >= len(data):
                return self._error(416, None)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(end - start))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{digest}"')
        self.end_headers()
        if self.command == "HEAD":
            return
        is_beginning = asked is not None and asked[2] != ""
        for limit in (self.hub.break_after, self.hub.stall_after):
            if limit is not None and not is_beginning and end - start > limit:
                self._send(data[start : start + limit])
                if limit == self.hub.stall_after:
                    self.hub.released.wait(self.hub.stall_seconds)
                self.close_connection = True
                return
        self._send(data[start:end])

    def _send(self, data: bytes) -> None:
        with suppress(OSError):
            self.wfile.write(data)
            self.wfile.flush()
            self.hub.n_sent += len(data)

    def _json(self, about: Any) -> None:
        data = json.dumps(about).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self._send(data)

    def _error(self, status: int, code: str | None, message: str = "refused") -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextmanager
def serving() -> Iterator[FakeHub]:
    """A hub, its contents on a port of their own."""
    hub = FakeHub()
    handler = type("HubHandler", (Handler,), {"hub": hub})
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for _ in range(2)]
    for server in servers:
        server.daemon_threads = True
        server.block_on_close = False
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    hub.endpoint, hub.elsewhere = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    # a name of its own, as contents come from another host
    hub.elsewhere = hub.elsewhere.replace("127.0.0.1", "localhost")
    try:
        yield hub
    finally:
        hub.released.set()
        for server in servers:
            server.shutdown()
            server.server_close()


def use(hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the commands of this process ask that hub, without a token and into an empty cache folder."""

    for name, value in {
        "ENDPOINT": hub.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(cache / "hub"),
        "HF_TOKEN_PATH": str(cache / "token"),
        "AGENT_HARNESSES_PATH": str(cache / "harnesses.json"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DOWNLOAD_TIMEOUT": 2,
        "HF_HUB_ETAG_TIMEOUT": 2,
    }.items():
        monkeypatch.setattr(constants, name, value, raising=False)
    # no proxy stands between, also for processes that are started
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    close_session()
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    # what an interruption may lose, and what is waited before another attempt
    monkeypatch.setattr(download, "CHUNK_BYTES", 10_000)
    monkeypatch.setattr(download, "PAUSE_SECONDS", 0.0)
