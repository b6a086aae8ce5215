"""A model of a user's own is placed only on nodes that have the same files."""

from __future__ import annotations

from cluster.own_models import OwnModel, nodes_with, only_nodes
from cluster.topology import NodeRecord, Topology

MINE, TWIN, OTHER = OwnModel("mine", "1"), OwnModel("mine", "2"), OwnModel("other", "1")


def test_nodes_need_the_same_name_and_files() -> None:
    listed = {"a": (MINE, OTHER), "b": (TWIN,), "c": (OTHER,), "d": (MINE,), "e": ()}
    assert nodes_with(MINE, listed) == {"a", "d"}


def test_topology_keeps_only_those_nodes() -> None:
    topology = Topology()
    for name in "abc":
        topology = topology.with_node(NodeRecord(name, name, 1, 1))
    assert only_nodes(topology, frozenset("ac")).node_ids == ("a", "c")
    assert only_nodes(topology, frozenset()).nodes == ()
