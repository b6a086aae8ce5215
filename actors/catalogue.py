"""The catalogue as a node's actors load it: the shipped cards and the user's own folder."""

from __future__ import annotations

from bus.config import NodeConfig
from bus.process import CannotStart
from models.catalogue import Catalogue
from models.errors import CatalogueError


def load_catalogue(config: NodeConfig) -> Catalogue:
    """All cards. Raises CannotStart where a card of the user's cannot be read."""
    try:
        return Catalogue.load(config.cards_path)
    except CatalogueError as error:
        raise CannotStart(str(error)) from None
