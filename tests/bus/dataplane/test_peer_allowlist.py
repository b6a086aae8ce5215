"""`bus.dataplane.peer_allowlist`: a node is accepted by its key and with its role while it is linked."""

from __future__ import annotations

from bus.net.keys import new_key_pair
from cluster.roles import Role
from tests.support.network.dataplane import linked_nodes, peer


def test_removed_node_is_refused() -> None:
    linked, other, third = (linked_nodes(1)[0].allowlist, *(new_key_pair() for _ in range(2)))
    linked.add([peer(other), peer(third, Role.GATEWAY)])
    linked.remove(other.node_id)
    assert (linked.role_of(other.node_id), linked.authenticate("ring", other.public)) == (None, "")
    assert linked.role_of(third.node_id) is Role.GATEWAY
    assert linked.authenticate("ring", third.public) == third.node_id
