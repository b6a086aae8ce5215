"""A split GGUF model reads like the whole file, and a missing or foreign part is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.errors import WeightsError
from models.weights.reader import open_weights
from tests.support.models import write_tiny_gguf


@pytest.fixture
def first(tmp_path: Path) -> Path:
    write_tiny_gguf(tmp_path / "split" / "tiny.gguf", n_layers=2, split_tensors=8)
    return min((tmp_path / "split").iterdir())


def test_split_model_reads_like_the_whole_file(first: Path, tmp_path: Path) -> None:
    parts = open_weights(first)
    whole = open_weights(write_tiny_gguf(tmp_path / "tiny.gguf", n_layers=2))
    assert parts.architecture == whole.architecture
    assert parts.names() == whole.names()
    assert all((parts.tensor(name) == whole.tensor(name)).all() for name in whole.names())


def test_missing_part_is_named(first: Path) -> None:
    (last,) = first.parent.glob("*-00003-of-00003.gguf")
    last.unlink()
    with pytest.raises(WeightsError, match=r"tiny-00003-of-00003\.gguf is missing, which \S+ needs; put all 3 parts"):
        open_weights(first)


def test_later_part_points_to_the_first(first: Path) -> None:
    with pytest.raises(WeightsError, match=r"is not the first of 3 parts; point to tiny-00001-of-00003\.gguf"):
        open_weights(first.with_name("tiny-00002-of-00003.gguf"))


def test_exchanged_parts_are_refused(first: Path) -> None:
    second, third = (first.with_name(f"tiny-0000{number}-of-00003.gguf") for number in (2, 3))
    content = second.read_bytes()
    second.write_bytes(third.read_bytes())
    third.write_bytes(content)
    with pytest.raises(WeightsError, match=r"00002-of-00003\.gguf is not part 2 of 3, as its name says"):
        open_weights(first)
