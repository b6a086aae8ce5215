"""Which nodes have a model in a folder of their own: no other node can fetch it, so only these can hold its layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta

from cluster.topology import Topology
from common.limits import ModelId, Name

MAX_OWN_MODELS = 256  # of one node, in its record


class OwnModel(msgspec.Struct, frozen=True):
    """A model in a folder of a node. Files with the same name are the same model if their fingerprints are equal."""

    model_id: ModelId
    fingerprint: Name


OwnModels = Annotated[tuple[OwnModel, ...], Meta(max_length=MAX_OWN_MODELS)]


def nodes_with(model: OwnModel, listed: Mapping[str, tuple[OwnModel, ...]]) -> frozenset[str]:
    """Return the nodes that list a model, of the models that each node lists."""
    return frozenset(node_id for node_id, models in listed.items() if model in models)


def only_nodes(topology: Topology, node_ids: frozenset[str]) -> Topology:
    """Return the topology without all other nodes."""
    for node_id in topology.node_ids:
        if node_id not in node_ids:
            topology = topology.without_node(node_id)
    return topology
