"""The graph of nodes and links, as a versioned value. Pure: every change gives a new Topology.

It does not know how nodes are found or how links are measured, and it never decides what runs where.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from cluster.capabilities import DeviceCapabilities
from common.limits import MAX_NODES, Endpoint, Name, Real, Whole

MOST_LINKS = 1024  # to show; all links of 32 nodes, and with the nodes they fit into one message


class NodeRecord(msgspec.Struct, frozen=True):
    """What a node says of itself. `sequence` rises with each record of one life of the node.

    `machine` is the same for all nodes of one machine, who share its memory and cores.
    """

    node_id: Name
    name: Name
    incarnation: Whole
    sequence: Whole
    capabilities: DeviceCapabilities = DeviceCapabilities()
    api: Endpoint = ""
    bus: Endpoint = ""
    version: Name = ""
    machine: Name = ""


class Link(msgspec.Struct, frozen=True):
    """A measured connection. Latency is half a round trip in milliseconds, bandwidth in Mbit/s (0: unknown)."""

    source: Name
    target: Name
    kind: Name = ""
    latency_ms: Real = 0.0
    bandwidth_mbit: Real = 0.0


class Topology(msgspec.Struct, frozen=True):
    """Nodes by id and links by (source, target), both sorted; `version` rises with each real change."""

    version: Whole = 0
    nodes: Annotated[tuple[NodeRecord, ...], Meta(max_length=MAX_NODES)] = ()
    links: Annotated[tuple[Link, ...], Meta(max_length=MOST_LINKS)] = ()

    def node(self, node_id: str) -> NodeRecord | None:
        """The record of a node, or None for a stranger."""
        return next((node for node in self.nodes if node.node_id == node_id), None)

    def on_machine(self, machine: str) -> int:
        """How many nodes run on a machine, as far as is known."""
        return sum(node.machine == machine for node in self.nodes)

    @property
    def node_ids(self) -> tuple[str, ...]:
        """The ids of all nodes, sorted."""
        return tuple(node.node_id for node in self.nodes)

    def with_node(self, record: NodeRecord) -> Topology:
        """Take in a record; an older one than we hold (by incarnation, then sequence) changes nothing.

        A repetition is remembered, so that its sequence counts, but is no new version.
        """
        held = self.node(record.node_id)
        if held is not None and _age(record) <= _age(held):
            return self
        others = (node for node in self.nodes if node.node_id != record.node_id)
        nodes = tuple(sorted((*others, record), key=lambda node: node.node_id))
        repeated = held is not None and msgspec.structs.replace(held, sequence=record.sequence) == record
        return Topology(self.version + (not repeated), nodes, self.links)

    def without_node(self, node_id: str) -> Topology:
        """Forget a node and its links."""
        if self.node(node_id) is None:
            return self
        nodes = tuple(node for node in self.nodes if node.node_id != node_id)
        links = tuple(link for link in self.links if node_id not in (link.source, link.target))
        return Topology(self.version + 1, nodes, links)

    def with_link(self, link: Link) -> Topology:
        """Take in a measurement between two known nodes; the last one wins. Beyond `MOST_LINKS` there is no new one."""
        if link in self.links or self.node(link.source) is None or self.node(link.target) is None:
            return self
        others = [held for held in self.links if (held.source, held.target) != (link.source, link.target)]
        if len(others) >= MOST_LINKS:
            return self
        links = tuple(sorted((*others, link), key=lambda held: (held.source, held.target)))
        return Topology(self.version + 1, self.nodes, links)


def _age(record: NodeRecord) -> tuple[int, int]:
    return record.incarnation, record.sequence
