"""`exobus cluster init` and `invite` as processes: the join code on this machine."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from cluster.join_code import new_join_code, parse_join_code
from cluster.roles import Role
from common.private_files import read_private, write_private
from tests.support.commands import cluster, printed, refused

HOME = new_join_code("home")


def test_init_makes_a_private_code_with_next_steps(tmp_path: Path) -> None:
    done = cluster(tmp_path, "init")
    code = parse_join_code(done.stdout)
    assert (code.name, code.role) == ("home", Role.MEMBER)
    assert read_private(tmp_path / "join-code") == done.stdout.strip()
    assert stat.S_IMODE((tmp_path / "join-code").stat().st_mode) == 0o600
    assert "exobus node --host auto --join CODE" in done.stderr
    assert code.text() not in done.stderr


def test_init_overwrites_no_code(tmp_path: Path) -> None:
    printed(tmp_path, "init")
    before = read_private(tmp_path / "join-code")
    sentence = refused(tmp_path, "init", "--name", "office")
    assert f"{tmp_path / 'join-code'} holds the join code of cluster home already" in sentence
    assert read_private(tmp_path / "join-code") == before


def test_init_refuses_a_malformed_name(tmp_path: Path) -> None:
    done = cluster(tmp_path, "init", "--name", "My Home")
    assert done.returncode == 2
    assert "small letters" in done.stderr
    assert not (tmp_path / "join-code").exists()


@pytest.mark.parametrize("role", list(Role))
def test_invite_prints_the_code_of_a_role(tmp_path: Path, role: Role) -> None:
    write_private(tmp_path / "join-code", HOME.text())
    done = cluster(tmp_path, "invite", "--role", role)
    assert parse_join_code(done.stdout) == HOME.invite(role)
    assert f"can join home as a{'n' * (role is Role.OBSERVER)} {role}: " in done.stderr


def test_invite_needs_the_code_of_a_member(tmp_path: Path) -> None:
    assert "exobus cluster init" in refused(tmp_path, "invite")
    write_private(tmp_path / "join-code", HOME.invite(Role.OBSERVER).text())
    assert "ask a member of home" in refused(tmp_path, "invite")
    (tmp_path / "join-code").chmod(0o644)
    assert "chmod 600" in refused(tmp_path, "invite")
