"""The result of making a card. Apart from `describe`, so that it can be named without importing the hub's library."""

from __future__ import annotations

import msgspec

from models.card import ModelCard


class Described(msgspec.Struct, frozen=True):
    """A card made from a model, and why this quantization was chosen (empty: there was no choice)."""

    card: ModelCard
    why: str = ""
