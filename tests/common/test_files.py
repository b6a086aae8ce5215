"""`common.files`: a file is replaced in one step or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from common.files import text_of, write_atomic


def test_file_is_replaced_with_the_given_mode(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old and longer")
    write_atomic(path, "new", 0o600)
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_text_of_an_unreadable_file_is_empty(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    (tmp_path / "text").write_text(" max 100000\n")
    assert [text_of(tmp_path / name) for name in ("none", "bytes", "text", ".")] == ["", "", "max 100000", ""]
