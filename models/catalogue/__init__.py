"""The catalogue of model cards: the TOML files of this package, and folders of other cards, which may change.

Knows nothing of downloads. Cards are looked up on every request, so a folder is read again only once it has changed.
"""

from __future__ import annotations

import difflib
import logging
import re
import time
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Self

import msgspec

from common.config import NodeConfig
from common.files import write_atomic
from models.cache import ModelCache
from models.card import FolderSource, HubSource, ModelCard, check_card, decode_card, encode_card, path_of, with_sizes_of
from models.errors import BadName, CatalogueError, UnknownModel
from models.names import CatalogueName, HubName, parse_name

logger = logging.getLogger(__name__)

DEFAULT_MODEL = "smollm2-135m"
MAX_CARDS = 4096  # in one folder; more are left unread
SETTLED_NS = 2 * 10**9  # a folder that changed less than this ago may change again without a newer time


class Catalogue:
    """Cards by id, alias and hub repository, in upper or lower case.

    Folders hold cards as JSON that are written while nodes run: `made` those of models on the hub, which also complete
    cards without sizes, and those of `own` the user's models, which win over all others.
    """

    def __init__(self, cards: Iterable[ModelCard], made: Path | None = None, own: Sequence[Path] = ()) -> None:
        self._given = tuple(cards)
        self._made, self._own = _WatchedFolder(made), tuple(_WatchedFolder(folder) for folder in own)
        self._cards: dict[str, ModelCard] = {}
        self._by_name: dict[str, ModelCard] = {}
        self._index()

    @classmethod
    def load(cls, extra: Path | None = None, made: Path | None = None, own: Sequence[Path] = ()) -> Self:
        """Read the shipped cards and those in the folder or file `extra`, which win. Raises CatalogueError."""
        cards = [_read_card(file) for file in _card_files(resources.files(__name__))]
        if extra is not None:
            files = [extra] if extra.is_file() else _card_files(extra)
            cards += [_read_card(file, extra if extra.is_dir() else extra.parent) for file in files]
        return cls(cards, made, own)

    @classmethod
    def of_node(cls, config: NodeConfig) -> Self:
        """Read all cards that a node has. Raises CatalogueError."""
        own = (config.listed_cards_path, config.own_cards_path)
        return cls.load(config.cards_path, ModelCache(Path(config.cache_dir)).cards_folder, own)

    def cards(self) -> tuple[ModelCard, ...]:
        """List all cards in the order of their ids."""
        self._refresh()
        return tuple(self._cards[model_id] for model_id in sorted(self._cards))

    def own(self) -> tuple[ModelCard, ...]:
        """List the cards of models in folders of this machine."""
        return tuple(card for card in self.cards() if isinstance(card.source, FolderSource))

    def made_from(self, repo: str) -> tuple[ModelCard, ...]:
        """List the cards that were made from a repository of the hub, the smallest model first."""
        made = (
            card for card in self.cards() if card.made_from.lower().partition("@")[0].partition(":")[0] == repo.lower()
        )
        return tuple(sorted(made, key=lambda card: card.size_bytes))

    def get(self, model_id: str) -> ModelCard:
        """Return the card of an id, alias or hub repository, in any form. Raises UnknownModel with the closest ids."""
        self._refresh()
        wanted = _plain(model_id)
        card = self._by_name.get(model_id.lower(), self._by_name.get(wanted))
        if card is None:
            # Of one kind, such as llama3.2, other sizes are closer than all that is spelled like it.
            kind = re.split("[:@]", wanted)[0]
            same = [name for name in self._by_name if name.startswith(kind) and len(kind) > 2]
            near = difflib.get_close_matches(wanted, same or self._by_name, n=6, cutoff=0.0 if same else 0.6)
            raise UnknownModel(model_id, tuple(dict.fromkeys(self._by_name[name].id for name in near))[:3])
        return card

    def received(self, model_id: str, text: str) -> ModelCard:
        """Return the card of a model that a message names: the one that it carries, else this node's own.

        A message's card says where to fetch a model, never what to read here. Raises CatalogueError or UnknownModel.
        """
        if not text:
            return self.get(model_id)
        card = decode_card(text, f"the card that came with {model_id}")
        if isinstance(card.source, FolderSource):
            raise CatalogueError(f"the card that came with {model_id} names a folder, which only this node's own may")
        if card.id != model_id or not card.sized:
            raise CatalogueError(f"the card that came with {model_id} is of {card.id}, or lacks its sizes")
        return card

    def _refresh(self) -> None:
        if any([folder.refresh() for folder in (self._made, *self._own)]):
            self._index()

    def _index(self) -> None:
        self._cards = {card.id: card for card in self._given}
        for card in self._made.cards:
            self._cards[card.id] = _completed(self._cards.get(card.id), card)
        self._cards |= {card.id: card for folder in self._own for card in folder.cards}
        cards = tuple(self._cards.values())
        self._by_name = {_repository(card): card for card in cards}
        self._by_name |= {alias: card for card in cards for alias in card.aliases}
        self._by_name |= {card.made_from.lower(): card for card in cards if card.made_from}
        self._by_name |= self._cards


def write_card(folder: Path, card: ModelCard) -> None:
    """Write a card into a folder that catalogues watch. The folder is made if it does not exist. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / f"{card.id}.json", encode_card(card))


class _WatchedFolder:
    """The cards of a folder that need not exist. One that cannot be read is left out, and said once in the log."""

    def __init__(self, folder: Path | None) -> None:
        self.cards: tuple[ModelCard, ...] = ()
        self._folder = folder
        self._seen: int | None = -1
        self.refresh()

    def refresh(self) -> bool:
        """Read the folder again if it has changed. Returns whether its cards did."""
        try:
            changed_ns = self._folder.stat().st_mtime_ns if self._folder else 0
        except OSError:
            changed_ns = 0
        if changed_ns == self._seen:
            return False
        before, self.cards = self.cards, tuple(self._read(self._folder)) if self._folder and changed_ns else ()
        self._seen = changed_ns if time.time_ns() - changed_ns > SETTLED_NS else None
        return self.cards != before

    def _read(self, folder: Path) -> Iterator[ModelCard]:
        for file in sorted(folder.glob("*.json"))[:MAX_CARDS]:
            try:
                yield decode_card(file.read_bytes(), f"the model card {file}")
            except FileNotFoundError:
                continue  # it was removed meanwhile
            except (OSError, CatalogueError) as error:
                logger.warning("%s", error)


def _plain(text: str) -> str:
    """Return a name without what an address has around it; what is no name of the catalogue or hub stays."""
    try:
        name = parse_name(text)
    except BadName:
        return text.lower()
    match name:
        case CatalogueName(name=known):
            return known
        case HubName():
            return str(name).lower()
        case _:
            return text.lower()


def _completed(held: ModelCard | None, made: ModelCard) -> ModelCard:
    """Return the held card, with the sizes of one that was made from the same repository if it lacks them."""
    if held is None:
        return made
    one, other = held.source, made.source
    if held.sized or not isinstance(one, HubSource) or not isinstance(other, HubSource):
        return held
    return with_sizes_of(held, made) if one.repo.lower() == other.repo.lower() else held


def _repository(card: ModelCard) -> str:
    """Return the hub's name of a card of safetensors; any other has several models, or none there."""
    return card.source.repo.lower() if isinstance(card.source, HubSource) and not card.source.files else card.id


def _card_files(folder: Traversable) -> list[Traversable]:
    try:
        files = [file for file in folder.iterdir() if file.name.endswith(".toml")]
    except OSError as error:
        raise CatalogueError(f"{folder} cannot be read ({error.strerror}); give a folder of model cards") from error
    return sorted(files, key=lambda file: file.name)


def _read_card(file: Traversable, folder: Path | None = None) -> ModelCard:
    """Read and check one card. The path of a folder source may be relative to `folder`, the folder of the card."""
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
        card = msgspec.convert(values, ModelCard, dec_hook=path_of)
    except msgspec.ValidationError as error:
        raise CatalogueError(f"the model card {file}: {error}; correct that field") from error
    except (OSError, ValueError) as error:
        raise CatalogueError(f"the model card {file} is not readable TOML: {error}") from error
    if folder is not None and isinstance(card.source, FolderSource):
        card = msgspec.structs.replace(card, source=FolderSource((folder / card.source.path).absolute()))
    return check_card(card, f"the model card {file}")
