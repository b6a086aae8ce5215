"""The graph of nodes and links, as a versioned immutable value: every change returns a new Topology.

It does not know how nodes are found or how links are measured, and it never decides what runs where.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from cluster.capabilities import DeviceCapabilities
from common.limits import MAX_NODES, Endpoint, Name, Real, Whole

MAX_LINKS = 1024  # all links of 32 nodes; together with the nodes they fit into one message


class RecordNumber(msgspec.Struct, frozen=True, order=True):
    """The place of a record among all of its node: the node's incarnation, and the sequence within it."""

    incarnation: Whole
    sequence: Whole


class NodeRecord(msgspec.Struct, frozen=True):
    """What a node publishes about itself.

    `incarnation` rises with each start of the node, `sequence` with each record since. `machine` is the same for all
    nodes of one machine, which share its memory and cores. `api` and `bus` are the endpoints of its gateway and hub.
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

    @property
    def number(self) -> RecordNumber:
        """The place of this record among all of its node."""
        return RecordNumber(self.incarnation, self.sequence)


class Link(msgspec.Struct, frozen=True):
    """A measured connection. Latency is half a round trip, in milliseconds; bandwidth is in Mbit/s (0: unknown)."""

    source: Name
    target: Name
    kind: Name = ""
    latency_ms: Real = 0.0
    bandwidth_mbit: Real = 0.0


class Topology(msgspec.Struct, frozen=True):
    """Nodes by id and links by (source, target), both sorted; `version` rises with each real change."""

    version: Whole = 0
    nodes: Annotated[tuple[NodeRecord, ...], Meta(max_length=MAX_NODES)] = ()
    links: Annotated[tuple[Link, ...], Meta(max_length=MAX_LINKS)] = ()

    def node(self, node_id: str) -> NodeRecord | None:
        """Return the record of a node, or None if it is unknown."""
        return next((node for node in self.nodes if node.node_id == node_id), None)

    def on_machine(self, machine: str) -> int:
        """Count the known nodes of a machine."""
        return sum(node.machine == machine for node in self.nodes)

    @property
    def node_ids(self) -> tuple[str, ...]:
        """The ids of all nodes, sorted."""
        return tuple(node.node_id for node in self.nodes)

    def with_node(self, record: NodeRecord) -> Topology:
        """Add or replace a record; one that is older (by incarnation, then sequence) changes nothing.

        A record that differs in its sequence alone is stored, but the version does not rise.
        """
        held = self.node(record.node_id)
        if held is not None and record.number <= held.number:
            return self
        others = (node for node in self.nodes if node.node_id != record.node_id)
        nodes = tuple(sorted((*others, record), key=lambda node: node.node_id))
        repeated = held is not None and msgspec.structs.replace(held, sequence=record.sequence) == record
        return Topology(self.version + (not repeated), nodes, self.links)

    def without_node(self, node_id: str) -> Topology:
        """Remove a node and its links."""
        if self.node(node_id) is None:
            return self
        nodes = tuple(node for node in self.nodes if node.node_id != node_id)
        links = tuple(link for link in self.links if node_id not in (link.source, link.target))
        return Topology(self.version + 1, nodes, links)

    def with_link(self, link: Link) -> Topology:
        """Add or replace the link between two known nodes. New links beyond `MAX_LINKS` are ignored."""
        if link in self.links or self.node(link.source) is None or self.node(link.target) is None:
            return self
        others = [held for held in self.links if (held.source, held.target) != (link.source, link.target)]
        if len(others) >= MAX_LINKS:
            return self
        links = tuple(sorted((*others, link), key=lambda held: (held.source, held.target)))
        return Topology(self.version + 1, self.nodes, links)
