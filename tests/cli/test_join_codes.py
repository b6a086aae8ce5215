"""The join codes on this machine: given, kept, and replaced."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.join_codes import given_code, keep_code, kept_code
from cluster.join_code import new_join_code
from common.private_files import write_private

HOME = new_join_code("home")
OTHER = new_join_code("office")


def test_code_is_text_or_a_private_file(tmp_path: Path) -> None:
    file = tmp_path / "code"
    write_private(file, HOME.text())
    assert given_code(HOME.text()) == given_code(str(file)) == HOME
    file.chmod(0o644)
    with pytest.raises(OSError, match="can be read by others"):
        given_code(str(file))
    with pytest.raises(ValueError, match="typing mistake"):
        given_code("home-" + "A" * 56)


def test_given_code_replaces_an_older_one(tmp_path: Path) -> None:
    rotated = new_join_code("home")
    assert kept_code(tmp_path) is None
    for code in (HOME, rotated):
        keep_code(tmp_path, code)
        assert kept_code(tmp_path) == code
    assert (tmp_path / "join-code").stat().st_mode & 0o777 == 0o600


def test_start_script_never_restores_an_old_code(tmp_path: Path) -> None:
    rotated, newer = new_join_code("home"), new_join_code("home")
    assert keep_code(tmp_path, HOME) == HOME
    write_private(tmp_path / "join-code", rotated.text())
    assert keep_code(tmp_path, HOME) == rotated == kept_code(tmp_path)
    assert keep_code(tmp_path, newer) == newer == kept_code(tmp_path)


def test_code_of_another_cluster_is_not_overwritten(tmp_path: Path) -> None:
    keep_code(tmp_path, HOME)
    with pytest.raises(ValueError, match=f"{tmp_path / 'join-code'} holds the join code of cluster home"):
        keep_code(tmp_path, OTHER)
    assert kept_code(tmp_path) == HOME


def test_damaged_code_is_reported_with_its_file(tmp_path: Path) -> None:
    write_private(tmp_path / "join-code", "not a code")
    with pytest.raises(ValueError, match=f"the join code in {tmp_path / 'join-code'} cannot be used"):
        kept_code(tmp_path)
