"""API keys: the file, its changes, the count of wrong ones, and a real gateway that asks for them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.process import CANNOT_START, CannotStart
from common.config import is_loopback
from gateway.http.api_keys import MAX_FILE_BYTES, ApiKeys, check_keys_required, parse_keys
from gateway.http.auth_throttle import AuthThrottle, client_of
from gateway.http.middleware import presented_keys
from tests.support.chat import PLAIN
from tests.support.ring import Rig, make_config, running_rig, start_gateway
from tests.support.stage import WITHIN_S

ONE, TWO, THREE = "first-key-0123456789", "second-key-0123456789", "third-key-0123456789"


def key_file(folder: Path, *lines: str) -> Path:
    """A file of keys that nobody else can read, written in place where there is one already."""
    path = folder / "api-keys"
    path.touch(mode=0o600)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


# -- the file


def test_a_file_has_one_key_a_line_between_comments_and_empty_lines() -> None:
    assert parse_keys(f"# mine\n{ONE}\n\n  {TWO}  \n") == ((ONE, TWO), "")


@pytest.mark.parametrize("line", ["short", "x" * 257, "with a blank inside it", "not-ascii-é-0123456789", "\x00" * 20])
def test_a_line_that_is_no_key_is_named_by_its_number_and_never_quoted(line: str) -> None:
    keys, fault = parse_keys(f"{ONE}\n{line}\n")
    assert keys == (ONE,)
    assert "line 2" in fault
    assert line not in fault


def test_a_file_without_a_key_is_a_fault() -> None:
    assert "exobus key" in parse_keys("# none yet\n").fault


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o644])
def test_keys_that_others_can_read_or_write_are_refused_with_what_to_type(tmp_path: Path, mode: int) -> None:
    path = key_file(tmp_path, ONE)
    path.chmod(mode)
    with pytest.raises(CannotStart, match=f"chmod 600 {path}"):
        ApiKeys(path)


def test_keys_of_another_user_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = key_file(tmp_path, ONE)
    somebody = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: somebody)
    with pytest.raises(CannotStart, match="belong to another user"):
        ApiKeys(path)


@pytest.mark.parametrize("lines", [[], ["short"], [ONE, "short"], ["k" * 80] * (MAX_FILE_BYTES // 80)])
def test_a_gateway_does_not_start_with_a_file_that_has_a_fault(tmp_path: Path, lines: list[str]) -> None:
    with pytest.raises(CannotStart, match="api-keys"):
        ApiKeys(key_file(tmp_path, *lines))


def test_a_gateway_does_not_start_without_the_file_that_it_was_told_of(tmp_path: Path) -> None:
    with pytest.raises(CannotStart, match="cannot be read"):
        ApiKeys(tmp_path / "nowhere")


# -- what is accepted


def test_exactly_the_keys_of_the_file_are_accepted(tmp_path: Path) -> None:
    keys = ApiKeys(key_file(tmp_path, ONE, TWO))
    assert keys.accepts(ONE)
    assert keys.accepts(TWO)
    assert not any(keys.accepts(wrong) for wrong in ("", THREE, ONE[:-1], ONE + "x", ONE.upper(), ONE + TWO, "é"))


def test_without_a_file_no_key_is_asked_for_and_none_is_accepted() -> None:
    keys = ApiKeys(None)
    assert not keys.required
    assert not keys.accepts("")


def test_a_key_can_be_added_and_removed_while_the_gateway_runs(tmp_path: Path) -> None:
    keys = ApiKeys(key_file(tmp_path, ONE))
    key_file(tmp_path, ONE, TWO)
    assert keys.accepts(TWO)
    key_file(tmp_path, TWO)
    assert not keys.accepts(ONE)


def test_a_line_that_is_no_key_adds_none_and_leaves_those_that_are_still_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = ApiKeys(key_file(tmp_path, ONE, TWO))
    key_file(tmp_path, ONE, THREE, "short")
    assert [keys.accepts(key) for key in (ONE, TWO, THREE)] == [True, False, False]
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1
    key_file(tmp_path, ONE, THREE)
    assert keys.accepts(THREE)


def test_a_file_that_goes_or_opens_up_lets_nobody_in(tmp_path: Path) -> None:
    path = key_file(tmp_path, ONE)
    keys = ApiKeys(path)
    path.chmod(0o644)
    assert not keys.accepts(ONE)
    path.chmod(0o600)
    assert keys.accepts(ONE)
    path.unlink()
    assert not keys.accepts(ONE)
    assert keys.required


# -- where keys are a must


@pytest.mark.parametrize("host", ["192.168.1.10", "0.0.0.0", "::", "", "fd00::1", "studio.lan", "127.evil.example"])
def test_beyond_loopback_a_gateway_without_keys_does_not_start(host: str) -> None:
    assert not is_loopback(host)
    with pytest.raises(CannotStart, match="--api-keys"):
        check_keys_required(host, ApiKeys(None))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.1.2.3"])
def test_on_loopback_a_gateway_needs_no_keys(host: str) -> None:
    check_keys_required(host, ApiKeys(None))


def test_with_keys_a_gateway_may_listen_anywhere(tmp_path: Path) -> None:
    check_keys_required("192.168.1.10", ApiKeys(key_file(tmp_path, ONE)))


@pytest.mark.parametrize("settings", [{"api_host": "0.0.0.0"}, {"api_keys": "/nowhere/keys"}, {"cors": ["*"]}])
def test_the_process_ends_with_a_sentence_where_it_would_be_open(tmp_path: Path, settings: dict[str, object]) -> None:
    process = start_gateway(make_config(tmp_path, tmp_path, **settings), tmp_path / "log")
    assert process.wait(WITHIN_S) == CANNOT_START
    last = (tmp_path / "log").read_text().strip().splitlines()[-1]
    assert " ERROR " in last
    assert not (tmp_path / "api").exists()
    assert process.stdin is not None
    process.stdin.close()


# -- counting wrong keys


def test_after_ten_wrong_keys_an_address_waits_until_a_minute_after_the_first() -> None:
    throttle = AuthThrottle()
    for second in range(10):
        assert throttle.wait_s("192.0.2.1", second) == 0
        throttle.record_failure("192.0.2.1", second)
    assert throttle.wait_s("192.0.2.1", 10) == 50
    assert throttle.wait_s("192.0.2.1", 59.5) == 1
    assert throttle.wait_s("192.0.2.1", 60) == 0
    assert throttle.wait_s("192.0.2.2", 10) == 0


@given(st.lists(st.floats(0, 20), max_size=200))
def test_no_minute_has_more_than_ten_wrong_keys_of_one_address(pauses: list[float]) -> None:
    throttle, now, failures = AuthThrottle(), 0.0, []
    for pause in pauses:
        now += pause
        if not throttle.wait_s("192.0.2.1", now):
            throttle.record_failure("192.0.2.1", now)
            failures.append(now)
    assert all(later - first >= 60 - 1e-6 for first, later in zip(failures, failures[10:], strict=False))


def test_the_table_of_addresses_is_bounded_and_forgets_the_oldest() -> None:
    throttle = AuthThrottle(most=1, addresses=3)
    for last in range(1, 6):
        throttle.record_failure(f"192.0.2.{last}", last)
    assert len(throttle) == 3
    assert [throttle.wait_s(f"192.0.2.{last}", 6.0) > 0 for last in range(1, 6)] == [False, False, True, True, True]


def test_one_machine_is_one_address_whatever_it_calls_itself() -> None:
    assert client_of("2001:db8:1:2::1") == client_of("2001:db8:1:2:ffff::9") != client_of("2001:db8:1:3::1")
    assert client_of("::ffff:192.0.2.1") == client_of("192.0.2.1") == "192.0.2.1"


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
def test_keys_are_taken_from_both_headers(headers: list[tuple[bytes, bytes]], keys: list[str]) -> None:
    assert list(presented_keys(headers)) == keys


# -- a real gateway


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp("keys")
    with running_rig(folder, api_keys=str(key_file(folder, ONE, TWO))) as rig:
        rig.tell("Hello world")
        yield rig


def ask(rig: Rig, path: str = "/v1/models", **headers: str) -> httpx.Response:
    return httpx.get(f"{rig.url}{path}", headers={name.replace("_", "-"): value for name, value in headers.items()})


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/tiny", "/v1/topology", "/nowhere", "/health/", "//health"])
def test_every_route_but_health_wants_a_key_on_loopback_as_well(rig: Rig, path: str) -> None:
    response = ask(rig, path)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    error = response.json()["error"]
    assert (error["code"], error["type"]) == ("invalid_api_key", "invalid_request_error")
    assert "Authorization: Bearer" in error["message"]


def test_no_chat_is_answered_without_a_key(rig: Rig) -> None:
    opened = len(rig.stage.openings)
    assert httpx.post(f"{rig.url}/v1/chat/completions", json=PLAIN).status_code == 401
    assert len(rig.stage.openings) == opened


@pytest.mark.parametrize("header", [{"authorization": f"Bearer {ONE}"}, {"x_api_key": TWO}])
def test_a_key_opens_the_gateway_in_either_header(rig: Rig, header: dict[str, str]) -> None:
    assert ask(rig, **header).status_code == 200


def test_without_a_key_health_tells_nothing_but_that_it_lives(rig: Rig) -> None:
    assert set(ask(rig, "/health").json()) == {"status", "ready"}
    assert {"version", "node", "node_id"} < set(ask(rig, "/health", x_api_key=ONE).json())


def test_ten_wrong_keys_make_an_address_wait_even_with_a_right_one_and_no_header_helps(tmp_path: Path) -> None:
    with running_rig(tmp_path, api_keys=str(key_file(tmp_path, ONE))) as rig:
        assert [ask(rig).status_code for _ in range(12)] == [401] * 12
        wrong = [ask(rig, authorization=f"Bearer guess-{number:012}") for number in range(9)]
        wrong.append(ask(rig, "/health", authorization=f"Bearer {ONE}", x_api_key=THREE))
        assert [response.status_code for response in wrong] == [401] * 10
        for forwarded in ("192.0.2.1", "192.0.2.2"):
            refused = ask(rig, authorization=f"Bearer {ONE}", x_forwarded_for=forwarded)
            assert refused.status_code == 429
            assert 0 < int(refused.headers["retry-after"]) <= 60
            assert refused.json()["error"]["code"] == "too_many_attempts"
        assert ask(rig, "/health").status_code == 200
        log = (tmp_path / "gateway.log").read_text()
    assert log.count("too many wrong API keys from 127.0.0.1") == 1
    assert "guess-" not in log


def test_a_key_that_is_removed_from_the_file_is_refused_from_then_on(tmp_path: Path) -> None:
    path = key_file(tmp_path, ONE, TWO)
    with running_rig(tmp_path, api_keys=str(path)) as rig:
        assert ask(rig, x_api_key=ONE).status_code == 200
        key_file(tmp_path, TWO)
        assert ask(rig, x_api_key=ONE).status_code == 401
        path.unlink()
        assert ask(rig, x_api_key=TWO).status_code == 401
        assert ask(rig).status_code == 401
