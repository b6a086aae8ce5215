"""`gateway.http.origin_check`: what a web page can make a browser send is refused by a real gateway, byte for byte.

Each request is written to a raw socket, so that no client library corrects it.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.process import CannotStart
from gateway.http.origin_check import origin_policy, refusal
from tests.support.gateway.chat import PLAIN
from tests.support.gateway.gateway_rig import Rig, running_rig
from tests.support.gateway.text_stage import WITHIN_S

NAME, LISTED = "studio.lan", "https://chat.example"
JSON = "content-type: application/json"
CHAT = "/v1/chat/completions"


class Answer(NamedTuple):
    """A response: status, headers by lower-case name, and the body."""

    status: int
    headers: dict[str, str]
    body: bytes


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with running_rig(tmp_path_factory.mktemp("browsers"), api_names=[NAME], cors=[LISTED + "/"]) as rig:
        rig.set_script("Hello world")
        yield rig


def exchange(rig: Rig, method: str, path: str, headers: list[str], body: bytes = b"", version: str = "1.1") -> Answer:
    """Send these exact lines and read the response to its end. PORT in a header is the gateway's port."""
    port = urlsplit(rig.url).port
    lines = [f"{method} {path} HTTP/{version}", *headers, "connection: close"]
    if body:
        lines.append(f"content-length: {len(body)}")
    data = "\r\n".join([*lines, "", ""]).replace("PORT", str(port)).encode("latin-1") + body
    with socket.create_connection(("127.0.0.1", port), timeout=WITHIN_S) as connection:
        connection.sendall(data)
        received = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    head, _, body = received.partition(b"\r\n\r\n")
    first, *fields = head.decode("latin-1").split("\r\n")
    split = (field.partition(":") for field in fields)
    return Answer(int(first.split()[1]), {name.lower(): value.strip() for name, _, value in split}, body)


HOME = "host: 127.0.0.1:PORT"

FORGED_HOSTS = [
    (421, ["host: evil.example"]),
    (421, ["host: evil.example:PORT"]),
    (421, ["host: 127.0.0.1.evil.example:PORT"]),
    (421, ["host: localhost.evil.example"]),
    (421, ["host: evil-localhost"]),
    (421, ["host: 127.0.0.1:1"]),
    (421, ["host: localhost:80"]),
    (421, ["host: 0.0.0.0:PORT"]),
    (421, ["host: 127.0.0.2:PORT"]),
    (421, ["host: [::]:PORT"]),
    (421, ["host: 2130706433:PORT"]),
    (421, ["host: 0x7f.1:PORT"]),
    (421, ["host: 192.168.1.10:PORT"]),
    (421, ["host: user@127.0.0.1:PORT"]),
    (421, ["host: 127.0.0.1:PORT@evil.example"]),
    (421, ["host: 127.0.0.1:PORT, evil.example"]),
    (421, ["host: 127.0.0.1 evil.example"]),
    (421, ["host: http://127.0.0.1:PORT"]),
    (421, ["host: 127.0.0.1:PORT/"]),
    (421, ["host: localhost.:PORT"]),
    (421, ["host: "]),
    (421, ["host: evil.example", "x-forwarded-host: 127.0.0.1:PORT"]),
    (400, [HOME, "host: evil.example"]),
    (400, ["host: evil.example", HOME]),
    (400, [HOME, HOME]),
    (400, []),
]
FORGED_ORIGINS = [
    (403, [HOME, "origin: https://evil.example"]),
    (403, [HOME, "origin: null"]),
    (403, [HOME, "origin: "]),
    (403, [HOME, "origin: file://"]),
    (403, [HOME, "origin: http://127.0.0.1"]),
    (403, [HOME, "origin: http://127.0.0.1:1"]),
    (403, [HOME, "origin: http://localhost:3000"]),
    (403, [HOME, "origin: https://127.0.0.1:PORT"]),
    (403, [HOME, "origin: http://127.0.0.1:PORT.evil.example"]),
    (403, [HOME, "origin: http://evil.example#http://127.0.0.1:PORT"]),
    (403, [HOME, "origin: http://user@127.0.0.1:PORT"]),
    (403, [HOME, "origin: http://chat.example"]),
    (403, [HOME, "origin: https://chat.example.evil.example"]),
    (403, [HOME, "origin: https://evil-chat.example"]),
    (403, [HOME, "origin: https://chat.example:8443"]),
    (403, [HOME, f"origin: {LISTED}", "origin: https://evil.example"]),
    (403, [HOME, "origin: https://evil.example", "sec-fetch-site: same-origin"]),
    (403, [HOME, "origin: moz-extension://0a1b"]),
    (403, [HOME, "sec-fetch-site: cross-site"]),
    (403, [HOME, "sec-fetch-site: same-site"]),
    (403, [HOME, "sec-fetch-site: cross-site", "sec-fetch-mode: no-cors", "sec-fetch-dest: image"]),
    (403, [HOME, "sec-fetch-site: none", "sec-fetch-site: cross-site"]),
    (403, [HOME, "sec-fetch-site: whatever"]),
    (403, [HOME, "sec-fetch-site: CROSS-SITE"]),
]
FORGED_KINDS = [
    (415, []),
    (415, ["content-type: text/plain"]),
    (415, ["content-type: text/plain;charset=UTF-8"]),
    (415, ["content-type: application/x-www-form-urlencoded"]),
    (415, ["content-type: multipart/form-data; boundary=x"]),
    (415, ["content-type: text/plain; application/json"]),
    (415, ["content-type: application/json, text/plain"]),
    (415, ["content-type: application/jsonp"]),
    (415, ["content-type: application/json; charset=utf-7"]),
    (415, ["content-type: application/json; charset=utf-8; x=y"]),
    (415, [JSON, JSON]),
    (415, [JSON, "content-type: text/plain"]),
    (415, ["content-type: "]),
]
LONG = [
    (431, [HOME, *(f"x-{number}: {'v' * 1000}" for number in range(33))]),
    (431, [HOME, f"cookie: {'c' * (33 << 10)}"]),
]


def test_there_are_forty_forged_requests() -> None:
    assert len(FORGED_HOSTS) + len(FORGED_ORIGINS) + len(FORGED_KINDS) >= 40


@pytest.mark.parametrize(("status", "headers"), [*FORGED_HOSTS, *FORGED_ORIGINS, *LONG], ids=str)
def test_forged_chat_is_refused_and_reaches_no_model(rig: Rig, status: int, headers: list[str]) -> None:
    opened = len(rig.stage.openings)
    answer = exchange(rig, "POST", CHAT, [*headers, JSON], json.dumps(PLAIN).encode())
    assert answer.status == status
    assert set(json.loads(answer.body)["error"]) == {"message", "type", "param", "code"}
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert len(rig.stage.openings) == opened


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize(("status", "headers"), [FORGED_HOSTS[0], *FORGED_ORIGINS[:2], FORGED_ORIGINS[18]], ids=str)
def test_forged_request_is_refused_with_any_method(rig: Rig, method: str, status: int, headers: list[str]) -> None:
    for path in ("/v1/models", "/health", "/nowhere"):
        assert exchange(rig, method, path, headers).status == status


@pytest.mark.parametrize(("status", "kinds"), FORGED_KINDS, ids=str)
def test_body_not_declared_as_json_is_refused(rig: Rig, status: int, kinds: list[str]) -> None:
    opened = len(rig.stage.openings)
    assert exchange(rig, "POST", CHAT, [HOME, *kinds], json.dumps(PLAIN).encode()).status == status
    assert len(rig.stage.openings) == opened


def test_long_path_is_refused(rig: Rig) -> None:
    assert exchange(rig, "GET", f"/v1/models/{'m' * 9000}", [HOME]).status == 414
    assert exchange(rig, "GET", f"/v1/models?{'m' * 9000}", [HOME]).status == 414


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "TRACE", "CONNECT", "MAKEUP"])
def test_route_refuses_other_methods(rig: Rig, method: str) -> None:
    for path in ("/v1/models", "/v1/models/tiny", "/v1/topology", "/health"):
        answer = exchange(rig, method, path, [HOME, JSON])
        assert (answer.status, sorted(answer.headers["allow"].split(", "))) == (405, ["GET", "HEAD"])
    assert exchange(rig, "GET", CHAT, [HOME]).status == 405


def test_url_of_another_host_is_not_served(rig: Rig) -> None:
    assert exchange(rig, "GET", "http://evil.example/v1/models", [HOME]).status == 404


def test_request_without_a_host_is_refused(rig: Rig) -> None:
    assert exchange(rig, "GET", "/v1/models", [], version="1.0").status == 400


@pytest.mark.parametrize(
    "headers",
    [
        [HOME],
        ["host: 127.0.0.1"],
        ["host: localhost:PORT"],
        ["host: LOCALHOST:PORT"],
        ["host: [::1]:PORT"],
        [f"host: {NAME}"],
        [f"host: {NAME}:PORT"],
        [HOME, "sec-fetch-site: none"],
        [HOME, "sec-fetch-site: same-origin"],
        [HOME, "origin: http://127.0.0.1:PORT", "sec-fetch-site: same-origin"],
        [HOME, "origin: http://localhost:PORT", "sec-fetch-site: cross-site"],
        [f"host: {NAME}:PORT", f"origin: http://{NAME}:PORT"],
        [HOME, f"origin: {LISTED}", "sec-fetch-site: cross-site"],
        [HOME, "cookie: a=b", "user-agent: curl/8", "referer: https://evil.example/"],
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "kind",
    [JSON, "content-type: application/json; charset=utf-8", 'Content-Type: Application/JSON;charset="UTF-8"'],
)
def test_honest_chat_is_answered(rig: Rig, headers: list[str], kind: str) -> None:
    answer = exchange(rig, "POST", CHAT, [*headers, kind], json.dumps(PLAIN).encode())
    assert answer.status == 200
    assert json.loads(answer.body)["choices"][0]["message"]["content"] == "Hello world"


# -- pages that are on the list


PREFLIGHT = [HOME, f"origin: {LISTED}", "sec-fetch-site: cross-site", "access-control-request-method: POST"]


def test_listed_page_may_preflight_json_and_a_key(rig: Rig) -> None:
    wanted = "access-control-request-headers: authorization,content-type,x-api-key,x-stainless-os"
    answer = exchange(rig, "OPTIONS", CHAT, [*PREFLIGHT, wanted])
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == LISTED
    assert answer.headers["access-control-allow-methods"] == "GET, POST"
    assert int(answer.headers["access-control-max-age"]) > 0
    assert "Origin" in answer.headers["vary"]
    assert "access-control-allow-credentials" not in answer.headers


def test_preflight_for_unlisted_headers_or_methods_is_refused(rig: Rig) -> None:
    assert exchange(rig, "OPTIONS", CHAT, [*PREFLIGHT, "access-control-request-headers: x-evil"]).status == 400
    assert exchange(rig, "OPTIONS", CHAT, [*PREFLIGHT[:-1], "access-control-request-method: DELETE"]).status == 400


def test_preflight_of_an_unlisted_page_is_refused(rig: Rig) -> None:
    asked = [HOME, "origin: https://evil.example", "access-control-request-method: POST"]
    answer = exchange(rig, "OPTIONS", CHAT, asked)
    assert answer.status == 403
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_only_a_listed_page_may_read_the_response(rig: Rig) -> None:
    answer = exchange(rig, "GET", "/v1/models", [HOME, f"origin: {LISTED}"])
    assert (answer.headers["access-control-allow-origin"], answer.headers["vary"]) == (LISTED, "Origin")
    assert "access-control-allow-origin" not in exchange(rig, "GET", "/v1/models", [HOME]).headers
    assert (
        exchange(rig, "GET", "/nowhere", [HOME, f"origin: {LISTED}"]).headers["access-control-allow-origin"] == LISTED
    )


# -- the rules by themselves


HEADER = st.tuples(
    st.sampled_from([b"host", b"origin", b"sec-fetch-site", b"content-type", b"content-length", b"x"]),
    st.binary(max_size=40) | st.sampled_from([b"127.0.0.1:52415", b"http://127.0.0.1:52415", b"application/json"]),
)


@given(st.sampled_from(["GET", "POST", "OPTIONS"]), st.lists(HEADER, max_size=6))
def test_accepted_request_names_this_host_and_origin(method: str, headers: list[tuple[bytes, bytes]]) -> None:
    if refusal(method, b"/", headers, origin_policy("127.0.0.1", 52415)) is None:
        named = dict(headers)
        assert [name for name, _ in headers].count(b"host") == 1
        assert named[b"host"].lower() in (b"127.0.0.1:52415", b"127.0.0.1", b"localhost", b"localhost:52415")
        assert named.get(b"origin", b"http://127.0.0.1:52415") == b"http://127.0.0.1:52415"
        assert method != "POST" or named[b"content-type"].lower() == b"application/json"


def test_request_must_name_one_host() -> None:
    known, ours = origin_policy("127.0.0.1", 1), (b"host", b"127.0.0.1:1")
    assert refusal("GET", b"/", [ours], known) is None
    for headers in ([], [ours, ours], [ours, (b"host", b"evil.example")]):
        refused = refusal("GET", b"/", headers, known)
        assert refused is not None
        assert refused.status == 400


def test_wildcard_address_is_no_host_name() -> None:
    assert origin_policy("192.168.1.10", 1).accepts_host("192.168.1.10:1")
    assert origin_policy("fd00::1", 1).accepts_host("[fd00::1]:1")
    assert not origin_policy("0.0.0.0", 1).accepts_host("0.0.0.0:1")
    assert not origin_policy("::", 1).accepts_host("[::]:1")


def test_origin_on_port_80_has_no_port() -> None:
    known = origin_policy("127.0.0.1", 80)
    assert known.accepts_origin("http://localhost")
    assert not known.accepts_origin("https://localhost")


@pytest.mark.parametrize(
    "origin", ["*", "null", "https://*.example", "chat.example", "https://a.example/path", "https://a, b"]
)
def test_only_whole_origins_can_be_listed(origin: str) -> None:
    with pytest.raises(CannotStart, match="--cors"):
        origin_policy("127.0.0.1", 1, origins=[origin])


@pytest.mark.parametrize("name", ["*", "a b", "http://a", "a:80", "", "a/b"])
def test_only_host_names_can_be_listed(name: str) -> None:
    with pytest.raises(CannotStart, match="--api-name"):
        origin_policy("127.0.0.1", 1, names=[name])


def test_desktop_app_can_be_an_origin() -> None:
    known = origin_policy("127.0.0.1", 1, origins=["tauri://localhost", "https://A.example/"])
    assert known.accepts_origin("tauri://localhost")
    assert known.accepts_origin("https://a.example")
