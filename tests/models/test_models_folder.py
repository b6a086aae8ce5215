"""What comes into a user's folder of models gets a card, and what leaves it loses that."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.catalogue import Catalogue
from models.models_folder import ModelsFolder
from tests.support.models import write_tiny_gguf, write_tiny_llama


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    return Catalogue((), None, [tmp_path / "cards"])


@pytest.fixture
def folder(tmp_path: Path) -> ModelsFolder:
    (tmp_path / "models").mkdir()
    return ModelsFolder(tmp_path / "models", tmp_path / "cards", lambda model_id: model_id == "taken")


def ids(catalogue: Catalogue) -> list[str]:
    return [card.id for card in catalogue.own()]


def test_cards_follow_the_folder(tmp_path: Path, folder: ModelsFolder, catalogue: Catalogue) -> None:
    assert folder.update() == []
    path = write_tiny_gguf(tmp_path / "models" / "One.gguf", n_layers=1)
    write_tiny_llama(tmp_path / "models" / "Two", n_layers=1)
    write_tiny_gguf(tmp_path / "models" / "three.gguf", n_layers=2, split_tensors=10)
    (tmp_path / "models" / "notes.txt").write_text("not a model")
    assert folder.update() == []
    assert ids(catalogue) == ["one", "three", "two"]
    path.unlink()
    assert folder.update() == []
    assert ids(catalogue) == ["three", "two"]


def test_model_that_is_being_copied_comes_once_it_is_whole(
    tmp_path: Path, folder: ModelsFolder, catalogue: Catalogue
) -> None:
    path = write_tiny_gguf(tmp_path / "models" / "one.gguf", n_layers=1)
    content = path.read_bytes()
    path.write_bytes(content[:5000])
    (sentence,) = folder.update()
    assert "one.gguf is left out" in sentence
    assert folder.update() == []
    path.write_bytes(content)
    assert folder.update() == []
    assert ids(catalogue) == ["one"]


def test_taken_name_is_left_out_with_a_sentence(tmp_path: Path, folder: ModelsFolder, catalogue: Catalogue) -> None:
    write_tiny_gguf(tmp_path / "models" / "taken.gguf", n_layers=1)
    (sentence,) = folder.update()
    assert "the catalogue has another model taken; rename it" in sentence
    assert ids(catalogue) == []
