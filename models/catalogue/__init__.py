"""The catalogue of model cards: the TOML files of this package, and optionally a folder of the user's own.

Knows nothing of downloads.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Self

import msgspec

from models.card import FolderSource, HubSource, ModelCard, check_card
from models.errors import CatalogueError, UnknownModel

DEFAULT_MODEL = "smollm2-135m"


class Catalogue:
    """Cards by id, alias and hub repository, in upper or lower case."""

    def __init__(self, cards: Iterable[ModelCard]) -> None:
        self._cards = {card.id: card for card in cards}
        self._by_name = {alias: card for card in self._cards.values() for alias in card.aliases}
        self._by_name |= {card.source.repo.lower(): card for card in self.cards() if isinstance(card.source, HubSource)}
        self._by_name |= self._cards

    @classmethod
    def load(cls, extra: Path | None = None) -> Self:
        """Read the shipped cards and those in the folder or file `extra`, which win. Raises CatalogueError."""
        cards = [_read_card(file) for file in _toml_files(resources.files(__name__))]
        if extra is not None:
            files = [extra] if extra.is_file() else _toml_files(extra)
            cards += [_read_card(file, extra if extra.is_dir() else extra.parent) for file in files]
        return cls(cards)

    def cards(self) -> tuple[ModelCard, ...]:
        """List all cards in the order of their ids."""
        return tuple(self._cards[model_id] for model_id in sorted(self._cards))

    def get(self, model_id: str) -> ModelCard:
        """Return the card of an id, alias or hub repository. Raises UnknownModel with the closest ids."""
        card = self._by_name.get(model_id.lower())
        if card is None:
            names = difflib.get_close_matches(model_id.lower(), self._by_name, n=6, cutoff=0.5)
            raise UnknownModel(model_id, tuple(dict.fromkeys(self._by_name[name].id for name in names))[:3])
        return card


def _toml_files(folder: Traversable) -> list[Traversable]:
    try:
        files = [file for file in folder.iterdir() if file.name.endswith(".toml")]
    except OSError as error:
        raise CatalogueError(f"{folder} cannot be read ({error.strerror}); give a folder of model cards") from error
    return sorted(files, key=lambda file: file.name)


def _read_card(file: Traversable, folder: Path | None = None) -> ModelCard:
    """Read and check one card. The path of a folder source may be relative to `folder`, the folder of the card."""
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
        card = msgspec.convert(values, ModelCard, dec_hook=_path)
    except msgspec.ValidationError as error:
        raise CatalogueError(f"the model card {file}: {error}; correct that field") from error
    except (OSError, ValueError) as error:
        raise CatalogueError(f"the model card {file} is not readable TOML: {error}") from error
    if folder is not None and isinstance(card.source, FolderSource):
        card = msgspec.structs.replace(card, source=FolderSource((folder / card.source.path).absolute()))
    return check_card(card, f"the model card {file}")


def _path(kind: type, value: object) -> Path:
    """Convert a string to a path for msgspec, which knows only plain types."""
    if kind is not Path or not isinstance(value, str) or not value:
        raise NotImplementedError(f"a card holds no {kind.__name__}")
    return Path(value).expanduser()
