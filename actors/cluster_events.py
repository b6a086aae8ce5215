"""Sentences about what happens in the cluster, for the owner of a node. Pure: a fact in, text out."""

from __future__ import annotations

from collections.abc import Mapping

from bus.messages import ClusterChanged, Fact, InstanceUp, PeerAuthenticated, PeerDown, PeerUp
from bus.net.endpoints import address_of
from cluster.roles import Role


def describe(fact: Fact, names: Mapping[str, str], cluster: str) -> str:
    """Return one sentence about a fact, or an empty string if it is nothing that an owner must know.

    `names` are the names of nodes by their ids; one without is called by its id. `cluster` is a name too.
    """
    match fact:
        case PeerUp():
            role = "" if fact.role is Role.MEMBER else f" as {fact.role}"
            return f"node {fact.name} joined{role} ({address_of(fact.endpoint).removeprefix('tcp://')})"
        case PeerDown():
            return f"node {names.get(fact.node_id, fact.node_id)} is gone: {fact.reason}"
        case PeerAuthenticated():
            return fact.warning  # it joined under a name that another key had
        case ClusterChanged():
            return f"the join code of cluster {cluster} was changed; `exobus cluster invite` prints the new one"
        case InstanceUp(instance=instance):
            shares = (
                f"{names.get(stage.node_id, stage.node_id)} {len(stage.shard.layers)}" for stage in instance.stages
            )
            return f"{instance.model_id} is loaded, layers by node: {', '.join(shares)}"
    return ""
