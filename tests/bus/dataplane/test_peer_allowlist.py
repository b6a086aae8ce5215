"""`bus.dataplane.peer_allowlist`: a node is removed once two lists lack it."""

from __future__ import annotations

from bus.net.keys import new_key_pair
from cluster.roles import Role
from tests.support.dataplane import linked_nodes, peer


def test_node_missing_from_two_lists_is_removed() -> None:
    linked, other, third = (linked_nodes(1)[0].allowlist, *(new_key_pair() for _ in range(2)))
    linked.add([peer(other), peer(third)])
    for peers, expected in (((), True), ((peer(other),), True), ((), True), ((), False)):
        linked.reconcile(peers)
        assert (linked.role_of(other.node_id) is Role.MEMBER) is expected
    assert linked.role_of(third.node_id) is None
    assert linked.authenticate("ring", other.public) == ""
