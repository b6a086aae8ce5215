"""A Hugging Face hub and a package index on loopback: HTTP servers with faults that a test sets.

They serve the files of a folder, or given bytes, well enough for `huggingface_hub` and pip themselves.
"""

from __future__ import annotations

import hashlib
import json
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from models.cache import ModelCache
from models.card import ModelCard, Source
from models.sources.request import Progress

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "tiny/llama"
STALL_S = 60.0  # at most, so that no server outlives its test
LARGE_BYTES = 4096  # files above this are "LFS" files: listed with their sha256


@dataclass
class Faults:
    """Faults by file name: a status to reply with, lengths to which the next bodies are cut, or other bytes.

    `whole` are files that are sent whole whatever range is requested, `no_range` those of which no range can be had.
    After a cut, a file in `stalled` leaves the connection open until the event is set. `elsewhere` redirects to a URL.
    `hashes` are listed in place of a file's own, and sizes that many bytes `longer`.
    Of the listing, `instead` and `drip_s` have the name `model info`: it comes byte by byte, each after that time.
    """

    status: dict[str, int] = field(default_factory=dict)
    cut: dict[str, list[int]] = field(default_factory=dict)
    instead: dict[str, bytes] = field(default_factory=dict)
    whole: set[str] = field(default_factory=set)
    no_range: set[str] = field(default_factory=set)
    stalled: dict[str, threading.Event] = field(default_factory=dict)
    elsewhere: dict[str, str] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    longer: dict[str, int] = field(default_factory=dict)
    drip_s: dict[str, float] = field(default_factory=dict)
    ended: threading.Event = field(default_factory=threading.Event)


@dataclass
class FakeServer:
    """A running server: its URL, its files and their commit, the requests that it received, and its faults.

    `first_bytes` are the first bytes of the ranges that were requested, with their file; `tokens` the users' tokens.
    """

    url: str
    files: dict[str, bytes]
    commit: str = COMMIT
    faults: Faults = field(default_factory=Faults)
    requests: list[str] = field(default_factory=list)
    first_bytes: list[tuple[str, int]] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)

    def fetched(self) -> list[str]:
        """Return the names of the files with requested bodies, in order; a range counts as the file."""
        return [line.rpartition("/")[2] for line in self.requests if line.startswith("GET") and "/resolve/" in line]


class _FileHandler(BaseHTTPRequestHandler):
    """Serves files by name; subclasses map paths to names."""

    protocol_version = "HTTP/1.1"
    fake: FakeServer

    @property
    def target(self) -> str:
        """The target of the request as it was sent; `path` has two slashes at its beginning made one."""
        return self.requestline.split()[1]

    def do_GET(self) -> None:
        self.fake.requests.append(f"GET {self.target}")
        self.fake.tokens.append(self.headers.get("Authorization", ""))
        self.route()

    def do_HEAD(self) -> None:
        self.fake.requests.append(f"HEAD {self.target}")
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
        faults = self.fake.faults
        if name in faults.status:
            self.send(faults.status[name], b"a fault was set")
        elif name in faults.elsewhere:
            self.send(302, b"", {"Location": faults.elsewhere[name]})
        elif name not in self.fake.files:
            self.send(404, b"no such file", {"X-Error-Code": "EntryNotFound"})
        else:
            self._send_range(name, faults.instead.get(name, self.fake.files[name]), headers)

    def _send_range(self, name: str, whole: bytes, headers: dict[str, str]) -> None:
        faults = self.fake.faults
        first, _, last = (self.headers.get("Range") or "bytes=0-")[6:].partition("-")
        asked, end = int(first), int(last or len(whole)) + 1
        start = 0 if name in faults.whole else asked
        self.fake.first_bytes.append((name, asked))
        if asked and (name in faults.no_range or asked >= len(whole)):
            self.send(416, b"", {"Content-Range": f"bytes */{len(whole)}"})
            return
        body = whole[start:] if name in faults.whole else whole[start:end]
        partial = len(body) < len(whole)
        if partial:
            headers = {**headers, "Content-Range": f"bytes {start}-{start + len(body) - 1}/{len(whole)}"}
        cuts = faults.cut.get(name)
        cut = cuts.pop(0) if cuts and self.command == "GET" else len(body)
        self.close_connection = cut < len(body)
        self.send(206 if partial else 200, body[:cut], headers, len(body))
        if self.close_connection and name in faults.stalled:
            self.wfile.flush()
            faults.stalled[name].wait(STALL_S)


class _HubHandler(_FileHandler):
    """The routes of a download and of a search: model info, and a file. Two slashes in succession lead nowhere."""

    def route(self) -> None:
        path = unquote(self.target.partition("?")[0])
        base = urlsplit(self.fake.url).path
        if "//" in path or not path.startswith(base):
            self.send(404, b"no such route")
        elif path == f"{base}/api/models":
            self._search()
        elif path.startswith(f"{base}/api/models/"):
            self._info(path)
        elif "/resolve/" in path:
            revision, _, name = path.partition("/resolve/")[2].partition("/")
            etag = _etag(self.fake.files.get(name, b""))
            if revision == self.fake.commit:
                self.send_file(name, {"ETag": f'"{etag}"', "X-Repo-Commit": self.fake.commit})
            else:
                self.send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        else:
            self.send(404, b"no such route")

    def _search(self) -> None:
        """List the one repository, if its name contains the words."""
        words = parse_qs(urlsplit(self.target).query).get("search", [""])[0]
        found = [{"id": REPOSITORY}] if words.lower() in REPOSITORY else []
        self.send(200, json.dumps(found).encode(), {"Content-Type": "application/json"})

    def _info(self, path: str) -> None:
        revision = path.partition("/revision/")[2]
        if "model info" in self.fake.faults.status:
            status = self.fake.faults.status["model info"]
            self.send(status, b"{}", {"X-Error-Code": "RepoNotFound"} if status == 404 else {})
        elif len(revision) == len(COMMIT) and revision != self.fake.commit:
            self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        else:
            hashes = self.fake.faults.hashes
            longer = self.fake.faults.longer
            siblings = [
                _sibling(name, content, hashes.get(name, _etag(content)), longer.get(name, 0))
                for name, content in self.fake.files.items()
            ]
            info = json.dumps({"id": REPOSITORY, "sha": self.fake.commit, "siblings": siblings}).encode()
            self.send_dripping(self.fake.faults.instead.get("model info", info))

    def send_dripping(self, body: bytes) -> None:
        """Send the listing, as slowly as is set, until the client leaves or the server ends."""
        pause_s = self.fake.faults.drip_s.get("model info", 0.0)
        step = 1 if pause_s else len(body)
        self.send(200, b"", {"Content-Type": "application/json"}, len(body))
        with suppress(OSError):
            for first in range(0, len(body), step):
                if pause_s and self.fake.faults.ended.wait(pause_s):
                    return
                self.wfile.write(body[first : first + step])


def _etag(content: bytes) -> str:
    if len(content) > LARGE_BYTES:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _sibling(name: str, content: bytes, digest: str, longer: int) -> dict[str, object]:
    size = len(content) + longer
    sibling: dict[str, object] = {"rfilename": name, "size": size, "blobId": digest}
    if len(content) > LARGE_BYTES:
        sibling["lfs"] = {"size": size, "sha256": digest, "pointerSize": 134}
    return sibling


class _IndexHandler(_FileHandler):
    """A simple package index, with one page for each project."""

    def route(self) -> None:
        path = unquote(self.path)
        if path.endswith(".whl"):
            self.send_file(path.rpartition("/")[2], {"Content-Type": "application/octet-stream"})
        elif path.startswith("/simple/") and "index" not in self.fake.faults.status:
            links = "".join(f'<a href="/files/{name}">{name}</a>' for name in self.fake.files)
            self.send(
                200,
                f"<!DOCTYPE html><html><body>{links}</body></html>".encode(),
                {"Content-Type": "text/html"},
            )
        else:
            self.send(self.fake.faults.status.get("index", 404), b"no such page")


@contextmanager
def _serving(handler: type[_FileHandler], files: dict[str, bytes], path: str = "") -> Iterator[FakeServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    fake = FakeServer(f"http://127.0.0.1:{server.server_port}{path}", files)
    server.RequestHandlerClass = type("_Bound", (handler,), {"fake": fake})
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield fake
    finally:
        fake.faults.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def fake_hub(folder: Path, path: str = "") -> Iterator[FakeServer]:
    """Run a hub at this path of a server, with one repository, under any name, that holds the files under `folder`."""
    with _serving(_HubHandler, files_of(folder), path) as fake:
        yield fake


def files_of(folder: Path) -> dict[str, bytes]:
    """Return the contents of the files under a folder by their paths in it."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


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


def tiny_card(source: Source, size_bytes: int = 1 << 20, *, tied: bool = True) -> ModelCard:
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
        tied_embedding=tied,
    )


def ignore(progress: Progress) -> None:
    """Ignore progress."""


def leftovers(cache: ModelCache) -> list[str]:
    """Return the files that a reader could take for weights, or that a fetch should have removed."""
    names = [path.name for path in cache.root.rglob("*") if path.is_file()]
    return [name for name in names if name.endswith((".gguf", ".part", ".safetensors", ".whl", ".txt"))]
