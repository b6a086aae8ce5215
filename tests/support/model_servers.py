"""A Hugging Face hub and a package index on loopback: HTTP servers with faults that a test sets.

They serve the files of a folder, or given bytes, well enough for `huggingface_hub` and pip themselves.
"""

from __future__ import annotations

import hashlib
import json
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from urllib.parse import unquote

from models.cache import ModelCache
from models.card import ModelCard, Source
from models.sources.request import Progress

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE_BYTES = 4096  # files above this are "LFS" files: listed with their sha256


@dataclass
class Faults:
    """Faults by file name: a status to reply with, lengths to which the next bodies are cut, or other bytes."""

    status: dict[str, int] = field(default_factory=dict)
    cut: dict[str, list[int]] = field(default_factory=dict)
    instead: dict[str, bytes] = field(default_factory=dict)


@dataclass
class FakeServer:
    """A running server: its URL, the requests that it received, and its faults."""

    url: str
    faults: Faults = field(default_factory=Faults)
    requests: list[str] = field(default_factory=list)

    def fetched(self) -> list[str]:
        """Return the names of the files whose bodies were requested, in order."""
        return [line.rpartition("/")[2] for line in self.requests if line.startswith("GET") and "/resolve/" in line]


class _FileHandler(BaseHTTPRequestHandler):
    """Serves files by name; subclasses map paths to names."""

    protocol_version = "HTTP/1.1"
    fake: FakeServer
    files: dict[str, bytes]

    def do_GET(self) -> None:
        self.fake.requests.append(f"GET {self.path}")
        self.route()

    def do_HEAD(self) -> None:
        self.fake.requests.append(f"HEAD {self.path}")
        self.route()

    def route(self) -> None:
        raise NotImplementedError

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: tests read `requests` instead."""

    def send(self, status: int, body: bytes, headers: dict[str, str] | None = None, length: int | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(length or len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def send_file(self, name: str, headers: dict[str, str]) -> None:
        """Send the whole file or, if requested, the range to its end, with its faults."""
        if name in self.fake.faults.status:
            self.send(self.fake.faults.status[name], b"a fault was set")
            return
        if name not in self.files:
            self.send(404, b"no such file", {"X-Error-Code": "EntryNotFound"})
            return
        whole = self.fake.faults.instead.get(name, self.files[name])
        start = int((self.headers.get("Range") or "bytes=0-")[6:].partition("-")[0])
        body = whole[start:]
        if start:
            headers = {**headers, "Content-Range": f"bytes {start}-{len(whole) - 1}/{len(whole)}"}
        cuts = self.fake.faults.cut.get(name)
        cut = cuts.pop(0) if cuts and self.command == "GET" else len(body)
        self.close_connection = cut < len(body)
        self.send(206 if start else 200, body[:cut], headers, len(body))


class _HubHandler(_FileHandler):
    """The three routes of a download: model info, HEAD of a file, the file."""

    def route(self) -> None:
        path = unquote(self.path.partition("?")[0])
        if path.startswith("/api/models/"):
            self._info(path)
        elif "/resolve/" in path:
            name = path.partition("/resolve/")[2].partition("/")[2]
            self.send_file(name, {"ETag": f'"{_etag(self.files.get(name, b""))}"', "X-Repo-Commit": COMMIT})
        else:
            self.send(404, b"no such route")

    def _info(self, path: str) -> None:
        if "model info" in self.fake.faults.status:
            self.send(self.fake.faults.status["model info"], b"{}", {"X-Error-Code": "RepoNotFound"})
            return
        siblings = [_sibling(name, content) for name, content in self.files.items()]
        info = {"id": "tiny/llama", "sha": COMMIT, "siblings": siblings}
        self.send(200, json.dumps(info).encode(), {"Content-Type": "application/json"})


def _etag(content: bytes) -> str:
    if len(content) > LARGE_BYTES:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _sibling(name: str, content: bytes) -> dict[str, object]:
    sibling: dict[str, object] = {"rfilename": name, "size": len(content), "blobId": _etag(content)}
    if len(content) > LARGE_BYTES:
        sibling["lfs"] = {"size": len(content), "sha256": _etag(content), "pointerSize": 134}
    return sibling


class _IndexHandler(_FileHandler):
    """A simple package index, with one page for each project."""

    def route(self) -> None:
        path = unquote(self.path)
        if path.endswith(".whl"):
            self.send_file(path.rpartition("/")[2], {"Content-Type": "application/octet-stream"})
        elif path.startswith("/simple/") and "index" not in self.fake.faults.status:
            links = "".join(f'<a href="/files/{name}">{name}</a>' for name in self.files)
            self.send(
                200,
                f"<!DOCTYPE html><html><body>{links}</body></html>".encode(),
                {"Content-Type": "text/html"},
            )
        else:
            self.send(self.fake.faults.status.get("index", 404), b"no such page")


@contextmanager
def _serving(handler: type[_FileHandler], files: dict[str, bytes]) -> Iterator[FakeServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    fake = FakeServer(f"http://127.0.0.1:{server.server_port}")
    server.RequestHandlerClass = type("_Bound", (handler,), {"fake": fake, "files": files})
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def fake_hub(folder: Path) -> Iterator[FakeServer]:
    """Run a hub with one repository, under any name, that holds the files of `folder`."""
    with _serving(_HubHandler, {path.name: path.read_bytes() for path in sorted(folder.iterdir())}) as fake:
        yield fake


@contextmanager
def fake_index(wheel_name: str, wheel: bytes) -> Iterator[FakeServer]:
    """Run a package index with one wheel; pip needs `url` + "/simple"."""
    with _serving(_IndexHandler, {wheel_name: wheel}) as fake:
        yield fake


def make_wheel(name: str, version: str, members: dict[str, bytes]) -> tuple[str, bytes]:
    """Return the file name and the bytes of a wheel that pip accepts and that contains `members`."""
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    tags = "Wheel-Version: 1.0\nGenerator: exobus tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as wheel:
        for path, content in members.items():
            wheel.writestr(path, content)
        wheel.writestr(f"{info}/METADATA", metadata)
        wheel.writestr(f"{info}/WHEEL", tags)
        wheel.writestr(f"{info}/RECORD", "")
    return f"{name}-{version}-py3-none-any.whl", buffer.getvalue()


def tiny_card(source: Source, size_bytes: int = 1 << 20) -> ModelCard:
    """Return the card of the tiny model of `tests.support.models`, with this source."""
    return ModelCard(
        id="tiny",
        name="Tiny",
        family="llama",
        n_layers=4,
        hidden_size=64,
        n_heads=4,
        n_kv_heads=2,
        head_dim=16,
        vocab_size=264,
        context_length=512,
        layer_bytes=147_968,
        embedding_bytes=67_584,
        size_bytes=size_bytes,
        source=source,
    )


def ignore(progress: Progress) -> None:
    """Ignore progress."""


def leftovers(cache: ModelCache) -> list[str]:
    """Return the files that a reader could take for weights, or that a fetch should have removed."""
    names = [path.name for path in cache.root.rglob("*") if path.is_file()]
    return [name for name in names if name.endswith((".gguf", ".part", ".safetensors", ".whl", ".txt"))]
