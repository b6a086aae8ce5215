"""Key files, node ids, and the proofs of joining."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from bus.net.keys import accept_proof, join_proof, key_pair_of, new_key_pair, node_id_of, own_key_pair, read_key_pair
from cluster.join_code import new_join_code
from cluster.roles import Role
from common.private_files import PrivateFileError, read_private, write_private


def test_key_survives_a_restart(tmp_path: Path) -> None:
    first = own_key_pair(tmp_path / "node" / "key")
    assert own_key_pair(tmp_path / "node" / "key") == first
    assert stat.S_IMODE((tmp_path / "node" / "key").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "node").stat().st_mode) == 0o700


def test_pair_follows_from_secret_key() -> None:
    pair = new_key_pair()
    assert key_pair_of(pair.secret) == pair
    assert pair.node_id == node_id_of(pair.public)
    assert len(pair.node_id) == 16


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o777])
def test_file_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    write_private(tmp_path / "key", "x")
    (tmp_path / "key").chmod(mode)
    with pytest.raises(PrivateFileError, match="can be read by others; make it yours alone with: chmod 600"):
        read_private(tmp_path / "key")


def test_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    write_private(tmp_path / "elsewhere", "x")
    (tmp_path / "key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PrivateFileError, match="cannot be read"):
        read_private(tmp_path / "key")


@pytest.mark.parametrize("content", ["", "zz", "ab" * 31, "ab" * 33, "ab" * 4000, "\xff\xfe"])
def test_damaged_key_file_is_one_sentence(tmp_path: Path, content: str) -> None:
    write_private(tmp_path / "key", content)
    with pytest.raises(PrivateFileError, match="holds no key; restore it, or delete it to become a new node"):
        read_key_pair(tmp_path / "key")


def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_private(tmp_path / "key", "old")

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(PrivateFileError, match="No space left"):
        write_private(tmp_path / "key", "new")
    assert read_private(tmp_path / "key") == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["key"]


def test_repr_hides_the_secret() -> None:
    pair = new_key_pair()
    assert pair.secret.hex() not in repr(pair)
    assert pair.public.hex() in repr(pair)


def test_proofs_differ_by_role_key_and_purpose() -> None:
    join, other = new_join_code("home").keys().join, new_join_code("home").keys().join
    public, join_port = new_key_pair().public, new_key_pair().public
    proofs = [join_proof(join, role, public, join_port) for role in Role]
    proofs += [accept_proof(join, role, public, join_port) for role in Role]
    proofs += [
        join_proof(join, Role.MEMBER, join_port, public),
        join_proof(other, Role.MEMBER, public, join_port),
    ]
    assert len(set(proofs)) == 8
