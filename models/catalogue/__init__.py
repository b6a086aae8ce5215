"""The catalogue of model cards: the TOML files of this package and, if asked, a folder of the user's own.

Knows nothing of downloads.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Self

import msgspec

from models.card import FolderSource, HubSource, ModelCard, check_card
from models.errors import CatalogueError, UnknownModel

__all__ = ["DEFAULT_MODEL", "Catalogue", "CatalogueError", "UnknownModel"]

DEFAULT_MODEL = "smollm2-135m"


class Catalogue:
    """Cards by id, alias and hub repository, whatever the case."""

    def __init__(self, cards: Iterable[ModelCard]) -> None:
        self._cards = {card.id: card for card in cards}
        self._by_name = {alias: card for card in self._cards.values() for alias in card.aliases}
        self._by_name |= {card.source.repo.lower(): card for card in self.cards() if isinstance(card.source, HubSource)}
        self._by_name |= self._cards

    @classmethod
    def load(cls, extra: Path | None = None) -> Self:
        """The shipped cards and those in the folder (or single file) `extra`, which win. CatalogueError."""
        cards = [_read_card(file) for file in _toml_files(resources.files(__name__))]
        if extra is not None:
            files = [extra] if extra.is_file() else _toml_files(extra)
            cards += [_read_card(file, extra if extra.is_dir() else extra.parent) for file in files]
        return cls(cards)

    def cards(self) -> tuple[ModelCard, ...]:
        """All cards by id."""
        return tuple(self._cards[model_id] for model_id in sorted(self._cards))

    def get(self, model_id: str) -> ModelCard:
        """The card of an id, alias or hub repository. UnknownModel names the nearest."""
        card = self._by_name.get(model_id.lower())
        if card is None:
            raise UnknownModel(model_id, self._near(model_id.lower()))
        return card

    def _near(self, model_id: str) -> tuple[str, ...]:
        names = difflib.get_close_matches(model_id, self._by_name, n=6, cutoff=0.5)
        return tuple(dict.fromkeys(self._by_name[name].id for name in names))[:3]


def _toml_files(folder: Traversable) -> list[Traversable]:
    try:
        files = [file for file in folder.iterdir() if file.name.endswith(".toml")]
    except OSError as error:
        raise CatalogueError(f"{folder} cannot be read ({error.strerror}); give a folder of model cards") from error
    return sorted(files, key=lambda file: file.name)


def _read_card(file: Traversable, folder: Path | None = None) -> ModelCard:
    """One card; the path of a folder source may be relative to `folder`, the place of the card."""
    try:
        card = msgspec.convert(_parse(file), ModelCard, dec_hook=_path)
    except msgspec.ValidationError as error:
        raise CatalogueError(f"the model card {file}: {error}; correct that field") from error
    if folder is not None and isinstance(card.source, FolderSource):
        card = msgspec.structs.replace(card, source=FolderSource((folder / card.source.path).absolute()))
    return check_card(card, f"the model card {file}")


def _parse(file: Traversable) -> Mapping[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CatalogueError(f"the model card {file} is not readable TOML: {error}") from error


def _path(kind: type, value: object) -> Path:
    if kind is not Path or not isinstance(value, str) or not value:
        raise NotImplementedError(f"a card holds no {kind.__name__}")
    return Path(value).expanduser()
