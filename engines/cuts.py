"""Which nodes can run a model, by the engine that it needs and by whether that runs parts of it. Imports no engine."""

from __future__ import annotations

from cluster.needed_engine import nodes_with_engine, only_roomiest
from cluster.own_models import only_nodes
from cluster.topology import Topology
from engines.llamacpp.cut_table import may_cut
from models.card import ModelCard


def runs_in_parts(card: ModelCard) -> bool:
    """Return whether a ring of several nodes can run a model.

    MLX finds out as it loads one; llama.cpp computes other numbers for a part of a model that its table does not know.
    """
    return card.engine != "llamacpp" or may_cut(card.family)


def able_nodes(card: ModelCard, topology: Topology) -> Topology:
    """Return the topology of the nodes that a model is placed on: those with its engine, or one if it runs whole."""
    members = only_nodes(topology, nodes_with_engine(topology, card.engine))
    return members if runs_in_parts(card) else only_roomiest(members)
