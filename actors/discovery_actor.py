"""The process that finds other nodes and has the hub dial them. Who is believed is `cluster.membership`'s to say."""

from __future__ import annotations

import asyncio
import time

from bus.actor import Actor, every, on
from bus.client import BusClient
from bus.config import NodeConfig
from bus.messages import VERSION, ActorUp, HubDescribe, HubState, PeerDown, PeerUp
from bus.peer import BusPeerHandle
from bus.process import CannotStart, run_actor
from bus.wire import Envelope
from cluster.membership import Beacon, Membership
from discovery.discovery import Discovery
from discovery.manual import peer_endpoint
from discovery.udp import UdpDiscovery


class DiscoveryActor(Actor):
    """Runs every configured way to find nodes, and keeps the membership that they feed."""

    name = "discovery"

    def __init__(self, config: NodeConfig, bus: BusClient) -> None:
        super().__init__(bus)
        self._config = config
        self._membership = Membership(config.node_id, config.cluster, VERSION)
        self._ways: list[Discovery] = []
        self._listening: list[asyncio.Task[None]] = []

    async def started(self) -> None:
        """Pin the peers named by hand, then announce this node and listen."""
        state = await self.bus.request("hub", HubDescribe(), HubState, 5.0)
        try:
            for peer in self._config.peers:
                self._membership = self._membership.pin(peer_endpoint(peer))
            if self._config.discovery_port:
                await self._listen_on(UdpDiscovery(self._config.discovery_port, loopback=self._config.loopback), state)
        except (ValueError, OSError) as error:
            raise CannotStart(str(error)) from None

    async def stopping(self) -> None:
        """Say good-bye."""
        for task in self._listening:
            task.cancel()
        await asyncio.gather(*self._listening, return_exceptions=True)
        for way in self._ways:
            await way.stop()

    @on(PeerUp)
    async def peer_up(self, message: PeerUp, envelope: Envelope) -> None:
        """Dialled long enough."""
        self._membership = self._membership.linked(message.endpoint, message.node_id)

    @on(PeerDown)
    async def peer_down(self, message: PeerDown, envelope: Envelope) -> None:
        """Worth a dial again, if it is heard of."""
        self._membership = self._membership.unlinked(message.node_id, time.monotonic())

    @on(ActorUp)
    async def met(self, message: ActorUp, envelope: Envelope) -> None:
        """The hub meets us: either of the two began anew, and what links we know of may be gone."""
        if message.name == self.bus.name:
            self._membership = self._membership.unlinked_all(time.monotonic())

    @every(0.25)
    async def dial(self) -> None:
        """Have the hub dial who is due."""
        self._membership, endpoints = self._membership.due(time.monotonic())
        for endpoint in endpoints:
            await BusPeerHandle(self.bus, endpoint).connect()

    async def _listen_on(self, way: Discovery, state: HubState) -> None:
        config = self._config
        own = Beacon(config.cluster, VERSION, config.node_id, config.name, config.incarnation, state.endpoint)
        await way.start(own)
        self._ways.append(way)
        self._listening.append(asyncio.create_task(self._listen(way)))

    async def _listen(self, way: Discovery) -> None:
        while True:
            beacon = await way.heard()
            self._membership = self._membership.hear(beacon, time.monotonic())


if __name__ == "__main__":
    run_actor(DiscoveryActor, DiscoveryActor.name)
