"""`common.private_files`: only the owner may read the files."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.private_files import PrivateFileError, is_private, read_private, write_private


def test_written_file_is_private_and_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "key"
    write_private(path, "secret")
    assert read_private(path) == "secret"
    assert is_private(path.stat())
    assert is_private(path.parent.stat())


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o602, 0o610])
def test_file_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    path.write_text("secret")
    path.chmod(mode)
    with pytest.raises(PrivateFileError, match=f"can be read by others; make it yours alone with: chmod 600 {path}"):
        read_private(path)


def test_symbolic_link_is_refused(tmp_path: Path) -> None:
    write_private(tmp_path / "key", "secret")
    (tmp_path / "link").symlink_to(tmp_path / "key")
    with pytest.raises(PrivateFileError, match=r"link cannot be read \(.*\); check its owner and mode"):
        read_private(tmp_path / "link")


def test_unwritable_path_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PrivateFileError, match=r"key cannot be written \(.*\); check the folder"):
        write_private(tmp_path / "file" / "key", "secret")
