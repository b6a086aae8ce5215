"""The topology actor: builds the graph from node records and link probes, and publishes `topology.changed`."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

import msgspec

from bus.actor import Actor, every, on
from bus.client import BusClient, RequestError
from bus.messages import (
    HubDescribe,
    HubPeer,
    HubState,
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
from cluster.placement import Instance
from cluster.roles import Role
from cluster.topology import Link, NodeRecord, Topology
from common.config import NodeConfig, is_loopback

MAX_INSTANCES = 256  # that one node placed; its next record lists those that stand
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
        self._instances: dict[str, tuple[Instance, ...]] = {}

    async def started(self) -> None:
        """Get the links that the hub had before this actor started."""
        state = await self.bus.request("hub", HubDescribe(), HubState, 5.0)
        for peer in state.peers:
            self._add_peer(peer)

    @on(PeerUp)
    async def peer_up(self, message: PeerUp, envelope: Envelope) -> None:
        """Accept records of a node that was linked."""
        self._add_peer(message)

    @on(PeerDown)
    async def peer_down(self, message: PeerDown, envelope: Envelope) -> None:
        """Remove a node, its links and the instances that it placed."""
        self._peers.pop(message.node_id, None)
        self._members.discard(message.node_id)
        self._instances.pop(message.node_id, None)
        await self._adopt(self._topology.without_node(message.node_id))

    @on(NodeRecorded)
    async def recorded(self, message: NodeRecorded, envelope: Envelope) -> None:
        """Add a member's record of itself to the graph. Gateways and observers hold no layers, so they are left out."""
        if envelope.node != message.record.node_id or envelope.node not in self._members:
            return
        if peer := self._peers.get(envelope.node):
            peer.capabilities = message.record.capabilities
        self._instances[envelope.node] = message.instances
        await self._adopt(self._topology.with_node(as_seen_from(self._machine, message.record)))

    @on(InstanceUp)
    async def instance_up(self, message: InstanceUp, envelope: Envelope) -> None:
        """Add an instance at once; the next record of its placer repeats it."""
        known = self._instances.get(envelope.node, ())
        others = [instance for instance in known if instance.instance_id != message.instance.instance_id]
        self._instances[envelope.node] = (*others, message.instance)[-MAX_INSTANCES:]

    @on(InstanceDown)
    async def instance_down(self, message: InstanceDown, envelope: Envelope) -> None:
        """Remove an instance. Any node may report it: the first that noticed the failure does."""
        for node, placed in self._instances.items():
            self._instances[node] = tuple(i for i in placed if i.instance_id != message.instance_id)

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
        """Return the graph and all instances that its nodes placed."""
        return TopologyState(self._topology, tuple(i for placed in self._instances.values() for i in placed))

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

    def _add_peer(self, peer: HubPeer | PeerUp) -> None:
        handle = self._peers[peer.node_id] = BusPeerHandle(self.bus, peer.endpoint)
        handle.linked(peer.node_id, peer.name)
        if peer.role is Role.MEMBER:
            self._members.add(peer.node_id)

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
