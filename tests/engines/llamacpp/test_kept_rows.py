"""The number of exact rows is measured once for a file, a library and a processor."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engines.llamacpp import kept_rows as module
from engines.llamacpp.kept_rows import kept_rows
from engines.llamacpp.shard_file import FOLDER


@pytest.fixture
def measured(tmp_path: Path) -> list[int]:
    """Write a file to ask for; the list has an item for each measurement."""
    (tmp_path / "shard.gguf").write_bytes(b"GGUF")
    return []


def ask(folder: Path, measured: list[int], rows: int = 6) -> int:
    def measure() -> int:
        measured.append(rows)
        return rows

    return kept_rows(folder / "shard.gguf", measure, folder)


def test_rows_are_measured_once(tmp_path: Path, measured: list[int]) -> None:
    assert [ask(tmp_path, measured) for _ in range(3)] == [6, 6, 6]
    assert measured == [6]


def test_other_file_or_processor_is_measured_again(
    tmp_path: Path, measured: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(tmp_path, measured)
    os.utime(tmp_path / "shard.gguf", (1, 1))
    assert ask(tmp_path, measured, rows=3) == 3
    monkeypatch.setattr(module, "processor_name", lambda: "an abacus")
    assert ask(tmp_path, measured, rows=9) == 9


@pytest.mark.parametrize("content", ["", "six", "0", "99"])
def test_damaged_number_of_rows_promises_nothing(tmp_path: Path, measured: list[int], content: str) -> None:
    ask(tmp_path, measured)
    (file,) = (tmp_path / FOLDER).iterdir()
    file.write_text(content)
    assert ask(tmp_path, measured, rows=4) == 4


def test_rows_are_measured_if_nothing_can_be_kept(tmp_path: Path, measured: list[int]) -> None:
    (tmp_path / FOLDER).write_text("in the way")
    assert [ask(tmp_path, measured), ask(tmp_path, measured)] == [6, 6]
    assert measured == [6, 6]
