"""`gateway.http.api_keys`: the file of keys, its changes, and when a gateway may run without one."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from bus.process import CANNOT_START, CannotStart
from common.config import is_loopback
from gateway.http.api_keys import MAX_FILE_BYTES, ApiKeys, check_keys_required, parse_keys
from tests.support.gateway.gateway_rig import make_config, start_gateway
from tests.support.gateway.text_stage import WITHIN_S

ONE, TWO, THREE = "first-key-0123456789", "second-key-0123456789", "third-key-0123456789"


def key_file(folder: Path, *lines: str) -> Path:
    """Write a private file of keys, in place if there is one already."""
    path = folder / "api-keys"
    path.touch(mode=0o600)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


# -- the file


def test_file_has_one_key_per_line() -> None:
    assert parse_keys(f"# mine\n{ONE}\n\n  {TWO}  \n") == ((ONE, TWO), "")


@pytest.mark.parametrize("line", ["short", "x" * 257, "with a blank inside it", "not-ascii-é-0123456789", "\x00" * 20])
def test_invalid_line_is_reported_by_number_only(line: str) -> None:
    keys, fault = parse_keys(f"{ONE}\n{line}\n")
    assert keys == (ONE,)
    assert "line 2" in fault
    assert line not in fault


def test_file_without_a_key_is_a_fault() -> None:
    assert "exobus key" in parse_keys("# none yet\n").fault


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o644])
def test_readable_keys_are_refused_with_a_fix(tmp_path: Path, mode: int) -> None:
    path = key_file(tmp_path, ONE)
    path.chmod(mode)
    with pytest.raises(CannotStart, match=f"chmod 600 {path}"):
        ApiKeys(path)


def test_keys_of_another_user_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = key_file(tmp_path, ONE)
    another_user = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: another_user)
    with pytest.raises(CannotStart, match="belong to another user"):
        ApiKeys(path)


@pytest.mark.parametrize("lines", [[], ["short"], [ONE, "short"], ["k" * 80] * (MAX_FILE_BYTES // 80)])
def test_gateway_does_not_start_with_a_faulty_file(tmp_path: Path, lines: list[str]) -> None:
    with pytest.raises(CannotStart, match="api-keys"):
        ApiKeys(key_file(tmp_path, *lines))


def test_gateway_does_not_start_without_its_file(tmp_path: Path) -> None:
    with pytest.raises(CannotStart, match="cannot be read"):
        ApiKeys(tmp_path / "nowhere")


# -- what is accepted


def test_exactly_the_keys_of_the_file_are_accepted(tmp_path: Path) -> None:
    keys = ApiKeys(key_file(tmp_path, ONE, TWO))
    assert keys.accepts(ONE)
    assert keys.accepts(TWO)
    assert not any(keys.accepts(wrong) for wrong in ("", THREE, ONE[:-1], ONE + "x", ONE.upper(), ONE + TWO, "é"))


def test_missing_file_requires_and_accepts_no_key() -> None:
    keys = ApiKeys(None)
    assert not keys.required
    assert not keys.accepts("")


def test_keys_can_change_while_the_gateway_runs(tmp_path: Path) -> None:
    keys = ApiKeys(key_file(tmp_path, ONE))
    key_file(tmp_path, ONE, TWO)
    assert keys.accepts(TWO)
    key_file(tmp_path, TWO)
    assert not keys.accepts(ONE)


def test_faulty_file_only_takes_keys_away(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys = ApiKeys(key_file(tmp_path, ONE, TWO))
    key_file(tmp_path, ONE, THREE, "short")
    assert [keys.accepts(key) for key in (ONE, TWO, THREE)] == [True, False, False]
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1
    key_file(tmp_path, ONE, THREE)
    assert keys.accepts(THREE)


def test_missing_or_open_file_accepts_no_key(tmp_path: Path) -> None:
    path = key_file(tmp_path, ONE)
    keys = ApiKeys(path)
    path.chmod(0o644)
    assert not keys.accepts(ONE)
    path.chmod(0o600)
    assert keys.accepts(ONE)
    path.unlink()
    assert not keys.accepts(ONE)
    assert keys.required


# -- when keys are required


@pytest.mark.parametrize("host", ["192.168.1.10", "0.0.0.0", "::", "", "fd00::1", "studio.lan", "127.evil.example"])
def test_gateway_beyond_loopback_requires_keys(host: str) -> None:
    assert not is_loopback(host)
    with pytest.raises(CannotStart, match="--api-keys"):
        check_keys_required(host, ApiKeys(None))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.1.2.3"])
def test_gateway_on_loopback_needs_no_keys(host: str) -> None:
    check_keys_required(host, ApiKeys(None))


def test_gateway_with_keys_may_listen_anywhere(tmp_path: Path) -> None:
    check_keys_required("192.168.1.10", ApiKeys(key_file(tmp_path, ONE)))


@pytest.mark.parametrize("settings", [{"api_host": "0.0.0.0"}, {"api_keys": "/nowhere/keys"}, {"cors": ["*"]}])
def test_unprotected_gateway_does_not_start(tmp_path: Path, settings: dict[str, object]) -> None:
    process = start_gateway(make_config(tmp_path, tmp_path, **settings), tmp_path / "log")
    assert process.wait(WITHIN_S) == CANNOT_START
    last = (tmp_path / "log").read_text().strip().splitlines()[-1]
    assert " ERROR " in last
    assert not (tmp_path / "api").exists()
    assert process.stdin is not None
    process.stdin.close()
