"""`cluster.topology`: what changes the graph and its version, and that the order of records does not matter."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster import topology as module
from cluster.capabilities import DeviceCapabilities
from cluster.topology import Link, NodeRecord, Topology

records = st.builds(
    lambda node, incarnation, sequence: NodeRecord(
        node,
        f"name of {node}",
        incarnation,
        sequence,
        DeviceCapabilities(memory_available=(incarnation * 7 + sequence) % 3),  # one record, one content
    ),
    st.sampled_from("abc"),
    st.integers(0, 3),
    st.integers(0, 5),
)


def graph(*node_ids: str) -> Topology:
    topology = Topology()
    for node_id in node_ids:
        topology = topology.with_node(NodeRecord(node_id, node_id, 1, 1))
    return topology


@settings(max_examples=500)
@given(st.data(), st.lists(records, max_size=12))
def test_records_in_any_order_give_the_same_graph(data: st.DataObject, sent: list[NodeRecord]) -> None:
    one, other = Topology(), Topology()
    for record in sent:
        one = one.with_node(record)
    for record in data.draw(st.permutations(sent)):
        other = other.with_node(record)
    assert one.nodes == other.nodes


@settings(max_examples=300)
@given(st.lists(records, max_size=12))
def test_version_rises_only_on_a_real_change(sent: list[NodeRecord]) -> None:
    topology = Topology()
    for record in sent:
        after = topology.with_node(record)
        assert after.version - topology.version == (_content(after) != _content(topology))
        topology = after


def _content(topology: Topology) -> tuple[NodeRecord, ...]:
    return tuple(msgspec.structs.replace(node, sequence=0) for node in topology.nodes)


def test_repeated_record_updates_only_the_sequence() -> None:
    topology = graph("a").with_node(NodeRecord("a", "a", 1, 5))
    assert topology.version == 1
    assert topology.with_node(NodeRecord("a", "late", 1, 4)) is topology


def test_record_of_an_earlier_incarnation_is_ignored() -> None:
    topology = Topology().with_node(NodeRecord("a", "new", 2, 1))
    assert topology.with_node(NodeRecord("a", "old", 1, 99)) is topology


def test_nodes_and_links_are_sorted() -> None:
    topology = graph("b", "c", "a").with_link(Link("b", "a")).with_link(Link("a", "c"))
    assert topology.node_ids == ("a", "b", "c")
    assert [(link.source, link.target) for link in topology.links] == [("a", "c"), ("b", "a")]


def test_removing_a_node_removes_its_links() -> None:
    topology = graph("a", "b", "c").with_link(Link("a", "b")).with_link(Link("b", "a")).with_link(Link("a", "c"))
    assert topology.without_node("b").links == (Link("a", "c"),)


def test_link_of_an_unknown_node_is_ignored() -> None:
    topology = graph("a")
    assert topology.with_link(Link("a", "z")) is topology
    assert topology.with_link(Link("z", "a")) is topology


def test_links_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LINKS", 1)
    topology = graph("a", "b").with_link(Link("a", "b"))
    assert topology.with_link(Link("b", "a")) is topology
    assert topology.with_link(Link("a", "b", latency_ms=2.0)).links == (Link("a", "b", latency_ms=2.0),)


def test_latest_measurement_of_a_link_wins() -> None:
    topology = graph("a", "b").with_link(Link("a", "b", latency_ms=1.0)).with_link(Link("a", "b", latency_ms=2.0))
    assert [link.latency_ms for link in topology.links] == [2.0]
    assert topology.with_link(Link("a", "b", latency_ms=2.0)) is topology
    assert topology.version == 4


def test_removing_an_unknown_node_changes_nothing() -> None:
    topology = graph("a")
    assert topology.without_node("z") is topology
    assert topology.node("z") is None
