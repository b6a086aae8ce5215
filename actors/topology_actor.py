"""The topology actor: builds the graph from node records and link probes, and publishes `topology.changed`."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

import msgspec

from bus.actor import Actor, every, on
from bus.client import BusClient, RequestError
from bus.messages import (
    InstanceDown,
    InstanceUp,
    LinkMeasured,
    LinkProbe,
    NodeRecorded,
    PeerDown,
    PeerUp,
    RequestDone,
    TopologyChanged,
    TopologyGet,
    TopologyState,
)
from bus.net.identity import own_role
from bus.peering.peer_handle import BusPeerHandle, PeerHandle
from bus.process import run_actor
from bus.wire import Envelope
from cluster.instances import Instances
from cluster.roles import Role
from cluster.topology import Link, NodeRecord, Topology
from common.config import NodeConfig, is_loopback

PROBES = 3  # the fastest of them counts: the others waited in some queue


class TopologyActor(Actor):
    """Keeps the members whose hubs are linked to this node's hub; records of any other node are ignored."""

    name = "topology"

    def __init__(self, config: NodeConfig, bus: BusClient) -> None:
        super().__init__(bus)
        self._topology = Topology()
        self._peers: dict[str, BusPeerHandle] = {}
        self._members = {config.node_id} if own_role(config) is Role.MEMBER else set()
        self._machine = config.machine
        self._instances = Instances(config.node_id)

    @on(PeerUp)
    async def peer_up(self, message: PeerUp, envelope: Envelope) -> None:
        """Accept records of a node that was linked."""
        handle = self._peers[message.node_id] = BusPeerHandle(self.bus, message.endpoint)
        handle.linked(message.node_id, message.name)
        self._instances.link(message.node_id)
        if message.role is Role.MEMBER:
            self._members.add(message.node_id)

    @on(PeerDown)
    async def peer_down(self, message: PeerDown, envelope: Envelope) -> None:
        """Remove a node, its links and the instances that have a stage on it."""
        self._peers.pop(message.node_id, None)
        self._members.discard(message.node_id)
        self._instances.unlink(message.node_id)
        await self._adopt(self._topology.without_node(message.node_id))

    @on(NodeRecorded)
    async def recorded(self, message: NodeRecorded, envelope: Envelope) -> None:
        """Add a member's record of itself to the graph. Gateways and observers hold no layers, so they are left out."""
        if envelope.node != message.record.node_id or envelope.node not in self._members:
            return
        if peer := self._peers.get(envelope.node):
            peer.capabilities = message.record.capabilities
        self._instances.record(envelope.node, message.record.number, message.instances, uses=message.uses)
        await self._adopt(self._topology.with_node(as_seen_from(self._machine, message.record)))

    @on(InstanceUp)
    async def instance_up(self, message: InstanceUp, envelope: Envelope) -> None:
        """Add an instance at once; the next records of its nodes repeat it."""
        self._instances.announce(message.instance, message.joined)

    @on(InstanceDown)
    async def instance_down(self, message: InstanceDown, envelope: Envelope) -> None:
        """Remove an instance."""
        self._instances.end(message.instance_id)

    @on(LinkMeasured)
    async def measured(self, message: LinkMeasured, envelope: Envelope) -> None:
        """Add a measured link. A node reports links from itself only."""
        if envelope.node == message.link.source:
            await self._adopt(self._topology.with_link(message.link))

    @on(LinkProbe)
    async def probed(self, message: LinkProbe, envelope: Envelope) -> RequestDone:
        """Reply at once, so that the sender can time the round trip."""
        return RequestDone()

    @on(TopologyGet)
    async def get(self, message: TopologyGet, envelope: Envelope) -> TopologyState:
        """Return the graph, and all instances that stand with their use."""
        loaded = self._instances.loaded()
        return TopologyState(self._topology, tuple(one.instance for one in loaded), tuple(one.use for one in loaded))

    @every(5.0)
    async def probe_links(self) -> None:
        """Measure the round trip to every linked node, and publish half of it as the link's latency."""
        for link in await asyncio.gather(*(self._probe(peer) for peer in self._peers.values())):
            if link is not None:
                await self.bus.publish(LinkMeasured(link))

    async def _probe(self, peer: PeerHandle) -> Link | None:
        try:
            trips = [await peer.health_check() for _ in range(PROBES)]
        except RequestError:
            return None  # if the node is gone, the hub reports that
        return Link(self.bus.node_id, peer.id, "bus", round(min(trips) / 2, 2))

    async def _adopt(self, topology: Topology) -> None:
        changed = topology.version != self._topology.version
        self._topology = topology
        if changed:
            await self.bus.publish(TopologyChanged(topology))


def as_seen_from(machine: str, record: NodeRecord) -> NodeRecord:
    """Return a record as a machine may use it: without an API address that only the node's own machine reaches."""
    hidden = record.machine != machine and is_loopback(urlsplit(record.api).hostname or "")
    return msgspec.structs.replace(record, api="") if hidden else record


if __name__ == "__main__":
    run_actor(TopologyActor, TopologyActor.name)
