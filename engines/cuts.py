"""Which models an engine can only run whole, judged by their cards. Imports no engine."""

from __future__ import annotations

from engines.llamacpp.cut_table import may_cut
from models.card import ModelCard


def runs_in_parts(card: ModelCard) -> bool:
    """Return whether a ring of several nodes can run a model.

    MLX finds out as it loads one; llama.cpp computes other numbers for a part of a model that its table does not know.
    """
    return card.engine != "llamacpp" or may_cut(card.family)
