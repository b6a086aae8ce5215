"""The process that keeps the graph: node records and link probes in, `topology.changed` out. Decides nothing."""

from __future__ import annotations

import asyncio
import time

from bus.actor import Actor, every, on
from bus.client import BusClient, RequestError
from bus.config import NodeConfig
from bus.messages import (
    HubDescribe,
    HubState,
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
from bus.process import run_actor
from bus.wire import Envelope
from cluster.placement import Instance
from cluster.topology import Link, Topology

PROBES = 3  # the quickest of them counts: the others waited behind something


class TopologyActor(Actor):
    """Knows a node while its hub is linked to ours; a record of anyone else is not believed."""

    name = "topology"

    def __init__(self, config: NodeConfig, bus: BusClient) -> None:
        super().__init__(bus)
        self._topology = Topology()
        self._linked = {config.node_id}
        self._instances: dict[str, tuple[Instance, ...]] = {}

    async def started(self) -> None:
        """Ask the hub for the links that stood before we came."""
        state = await self.bus.request("hub", HubDescribe(), HubState, 5.0)
        self._linked |= {peer.node_id for peer in state.peers}

    @on(PeerUp)
    async def peer_up(self, message: PeerUp, envelope: Envelope) -> None:
        """From now on its records count."""
        self._linked.add(message.node_id)

    @on(PeerDown)
    async def peer_down(self, message: PeerDown, envelope: Envelope) -> None:
        """Forget the node, its links and what it placed."""
        self._linked.discard(message.node_id)
        self._instances.pop(message.node_id, None)
        await self._adopt(self._topology.without_node(message.node_id))

    @on(NodeRecorded)
    async def recorded(self, message: NodeRecorded, envelope: Envelope) -> None:
        """A node speaks for itself only."""
        if envelope.node != message.record.node_id or envelope.node not in self._linked:
            return
        self._instances[envelope.node] = message.instances
        await self._adopt(self._topology.with_node(message.record))

    @on(LinkMeasured)
    async def measured(self, message: LinkMeasured, envelope: Envelope) -> None:
        """A probe of some node; its own probes only."""
        if envelope.node == message.link.source:
            await self._adopt(self._topology.with_link(message.link))

    @on(LinkProbe)
    async def probed(self, message: LinkProbe, envelope: Envelope) -> RequestDone:
        """Answer at once."""
        return RequestDone()

    @on(TopologyGet)
    async def get(self, message: TopologyGet, envelope: Envelope) -> TopologyState:
        """The graph and all instances that its nodes placed."""
        return TopologyState(self._topology, tuple(i for placed in self._instances.values() for i in placed))

    @every(5.0)
    async def probe_links(self) -> None:
        """Time a round trip to every linked node."""
        peers = [node for node in self._topology.node_ids if node != self.bus.node_id]
        for link in await asyncio.gather(*(self._probe(peer) for peer in peers)):
            if link is not None:
                await self.bus.publish(LinkMeasured(link))

    async def _probe(self, peer: str) -> Link | None:
        trips = []
        for _ in range(PROBES):
            begun = time.perf_counter()
            try:
                await self.bus.request(f"{peer}/topology", LinkProbe(), RequestDone, 2.0)
            except RequestError:
                return None  # its hub will tell whether the node is gone
            trips.append(time.perf_counter() - begun)
        return Link(self.bus.node_id, peer, "bus", round(min(trips) * 500, 2))

    async def _adopt(self, topology: Topology) -> None:
        changed = topology.version != self._topology.version
        self._topology = topology
        if changed:
            await self.bus.publish(TopologyChanged(topology))


if __name__ == "__main__":
    run_actor(TopologyActor, TopologyActor.name)
