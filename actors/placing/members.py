"""Which nodes may place models, as the node actor of one of them sees it."""

from __future__ import annotations

from bus.client import RequestError
from cluster.failures import FailureCode
from cluster.roles import Role
from cluster.topology import Topology
from common.config import NodeConfig


def placing_members(config: NodeConfig, role: Role, topology: Topology) -> set[str]:
    """Return the nodes that may place models; the node of these settings and this role is one of them if it may.

    Raises RequestError if this node may not request an instance, or no member is linked.
    """
    if role is Role.OBSERVER:
        raise RequestError(
            FailureCode.FORBIDDEN, "this node only observes; chat through another, or join with a gateway's code"
        )
    members = {*topology.node_ids, *([config.node_id] if role is Role.MEMBER else [])}
    if not members:
        raise RequestError(
            FailureCode.NO_MEMBER,
            f"no member of cluster {config.cluster} is linked to this gateway yet; try again in a moment",
        )
    return members
