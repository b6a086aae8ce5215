"""`gateway.http.middleware`: a real gateway that requires API keys."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from gateway.http.middleware import presented_keys
from tests.gateway.http.test_api_keys import ONE, THREE, TWO, key_file
from tests.support.gateway.chat import PLAIN
from tests.support.gateway.gateway_rig import Rig, running_rig


@pytest.mark.parametrize(
    ("headers", "keys"),
    [
        ([(b"authorization", b"Bearer abc")], ["abc"]),
        ([(b"authorization", b"bearer  abc ")], ["abc"]),
        ([(b"x-api-key", b" abc ")], ["abc"]),
        ([(b"authorization", b"Basic abc")], []),
        ([(b"authorization", b"abc")], []),
        ([(b"authorization", b"Bearer a"), (b"x-api-key", b"b")], ["a", "b"]),
        ([(b"cookie", b"Bearer a")], []),
    ],
)
def test_keys_are_read_from_both_headers(headers: list[tuple[bytes, bytes]], keys: list[str]) -> None:
    assert list(presented_keys(headers)) == keys


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp("keys")
    with running_rig(folder, api_keys=str(key_file(folder, ONE, TWO))) as rig:
        rig.set_script("Hello world")
        yield rig


def ask(rig: Rig, path: str = "/v1/models", **headers: str) -> httpx.Response:
    return httpx.get(f"{rig.url}{path}", headers={name.replace("_", "-"): value for name, value in headers.items()})


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/tiny", "/v1/topology", "/nowhere", "/health/", "//health"])
def test_every_route_but_health_requires_a_key(rig: Rig, path: str) -> None:
    response = ask(rig, path)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    error = response.json()["error"]
    assert (error["code"], error["type"]) == ("invalid_api_key", "invalid_request_error")
    assert "Authorization: Bearer" in error["message"]


def test_chat_without_a_key_reaches_no_model(rig: Rig) -> None:
    opened = len(rig.stage.openings)
    assert httpx.post(f"{rig.url}/v1/chat/completions", json=PLAIN).status_code == 401
    assert len(rig.stage.openings) == opened


@pytest.mark.parametrize("header", [{"authorization": f"Bearer {ONE}"}, {"x_api_key": TWO}])
def test_key_is_accepted_in_either_header(rig: Rig, header: dict[str, str]) -> None:
    assert ask(rig, **header).status_code == 200


def test_health_without_a_key_shows_liveness_only(rig: Rig) -> None:
    assert set(ask(rig, "/health").json()) == {"status", "ready"}
    assert {"version", "node", "node_id"} < set(ask(rig, "/health", x_api_key=ONE).json())


def test_right_key_passes_after_ten_wrong_ones(tmp_path: Path) -> None:
    with running_rig(tmp_path, api_keys=str(key_file(tmp_path, ONE))) as rig:
        assert [ask(rig).status_code for _ in range(12)] == [401] * 12
        wrong = [ask(rig, authorization=f"Bearer guess-{number:012}") for number in range(9)]
        wrong.append(ask(rig, "/health", authorization=f"Bearer {ONE}", x_api_key=THREE))
        assert [response.status_code for response in wrong] == [401] * 10
        assert [ask(rig, x_api_key=ONE).status_code for _ in range(3)] == [200] * 3
        for forwarded in ("192.0.2.1", "192.0.2.2"):
            refused = ask(rig, authorization=f"Bearer {THREE}", x_forwarded_for=forwarded)
            assert refused.status_code == 429
            assert 0 < int(refused.headers["retry-after"]) <= 60
            assert refused.json()["error"]["code"] == "too_many_attempts"
        assert ask(rig, "/health").status_code == 200
        log = (tmp_path / "gateway.log").read_text()
    assert log.count("too many wrong API keys from 127.0.0.1") == 1
    assert "guess-" not in log


def test_removed_key_is_refused(tmp_path: Path) -> None:
    path = key_file(tmp_path, ONE, TWO)
    with running_rig(tmp_path, api_keys=str(path)) as rig:
        assert ask(rig, x_api_key=ONE).status_code == 200
        key_file(tmp_path, TWO)
        assert ask(rig, x_api_key=ONE).status_code == 401
        path.unlink()
        assert ask(rig, x_api_key=TWO).status_code == 401
        assert ask(rig).status_code == 401
