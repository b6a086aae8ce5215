"""The process that finds other nodes and has the hub knock at their join ports. Whom to is `discovery.candidates`'s
to say.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter

from bus.actor import Actor, every, on
from bus.client import BusClient, RequestError
from bus.messages import (
    ActorUp,
    ClusterChanged,
    HubDescribe,
    HubState,
    PeerAuthenticated,
    PeerDown,
    PeerRefused,
    PeerUp,
)
from bus.net.identity import cluster_keys
from bus.peering.peer_handle import BusPeerHandle
from bus.process import CannotStart, run_actor
from bus.wire import Envelope
from cluster.failures import FailureCode
from cluster.roles import Role
from common.config import NodeConfig
from common.private_files import PrivateFileError
from discovery.beacon import Beacon
from discovery.beacon_filter import WrongJoinCode
from discovery.candidates import Candidates
from discovery.discovery import Discovery
from discovery.manual import peer_endpoint
from discovery.udp import NoBroadcastError, UdpDiscovery

logger = logging.getLogger(__name__)


class DiscoveryActor(Actor):
    """Runs every configured way to find nodes, and keeps the membership that they feed.

    A node that stands alone opens no port here and dials nobody. One that is no member listens and says nothing.
    """

    name = "discovery"

    def __init__(self, config: NodeConfig, bus: BusClient) -> None:
        super().__init__(bus)
        self._config = config
        self._membership = Candidates(config.node_id)
        self._role = Role.OBSERVER
        self._ways: list[Discovery] = []
        self._listening: list[asyncio.Task[None]] = []
        self._logged: Counter[str] = Counter()

    async def started(self) -> None:
        """Pin the peers named by hand, then announce this node and listen."""
        try:
            keys = cluster_keys(self._config)
            if keys is None:
                return
            self._role = keys.role
            for peer in self._config.peers:
                self._membership = self._membership.pin(peer_endpoint(peer))
            if self._config.discovery_port:
                await self._listen_on(UdpDiscovery(self._config.host, self._config.discovery_port, keys))
        except NoBroadcastError as error:
            logger.warning("%s", error)
        except (PrivateFileError, ValueError, OSError) as error:
            raise CannotStart(str(error)) from None
        await self._look_around()

    async def stopping(self) -> None:
        """Say good-bye."""
        for task in self._listening:
            task.cancel()
        await asyncio.gather(*self._listening, return_exceptions=True)
        for way in self._ways:
            await way.stop()

    @on(PeerAuthenticated)
    async def peer_met(self, message: PeerAuthenticated, envelope: Envelope) -> None:
        """Now we know whose join port that is."""
        self._membership = self._membership.met(message.endpoint, message.node_id, message.name, time.monotonic())

    @on(PeerRefused)
    async def peer_refused(self, message: PeerRefused, envelope: Envelope) -> None:
        """Knocking again soon would change nothing."""
        self._membership = self._membership.turned_away(message.endpoint, message.code, time.monotonic())

    @on(PeerUp)
    async def peer_up(self, message: PeerUp, envelope: Envelope) -> None:
        """Dialled long enough."""
        self._membership = self._membership.linked(message.node_id, time.monotonic())

    @on(PeerDown)
    async def peer_down(self, message: PeerDown, envelope: Envelope) -> None:
        """Worth a dial again, if it is heard of."""
        self._membership = self._membership.unlinked(message.node_id, time.monotonic())

    @on(ActorUp)
    async def met(self, message: ActorUp, envelope: Envelope) -> None:
        """The hub meets us: either of the two began anew, so links and its join port may be others now."""
        if message.name == self.bus.name and self._config.cluster:
            await self._look_around()

    @on(ClusterChanged)
    async def cluster_changed(self, message: ClusterChanged, envelope: Envelope) -> None:
        """Speak and listen under the new join code from now on."""
        if keys := cluster_keys(self._config):
            for way in self._ways:
                way.use(keys)
            await self._look_around()

    @every(0.25)
    async def dial(self) -> None:
        """Have the hub knock where it is due. What a beacon named and the hub cannot dial is tried again later."""
        self._membership, join_endpoints = self._membership.due(time.monotonic())
        for join_endpoint in join_endpoints:
            try:
                await BusPeerHandle(self.bus, join_endpoint).connect()
            except RequestError as error:
                logger.info("not dialling %s: %s", join_endpoint, error)

    @every(60.0)
    async def count(self) -> None:
        """Log how many datagrams were not believed, where it is more than before."""
        dropped = sum((way.dropped for way in self._ways), Counter(self._membership.refused))
        if dropped != self._logged:
            logger.info("beacons not believed so far: %s", dict(dropped))
        self._logged = dropped

    async def _look_around(self) -> None:
        """Take over the hub's links, and announce its join port."""
        state = await self.bus.request("hub", HubDescribe(), HubState, 5.0)
        self._membership = self._membership.standing((peer.node_id for peer in state.peers), time.monotonic())
        for way in self._ways:
            way.announce(self._beacon(state.join_endpoint))

    def _beacon(self, join_endpoint: str) -> Beacon | None:
        config = self._config
        if self._role is not Role.MEMBER or not join_endpoint:
            return None
        return Beacon(config.node_id, config.name, config.incarnation, 0, join_endpoint)

    async def _listen_on(self, way: Discovery) -> None:
        await way.start()
        self._ways.append(way)
        self._listening.append(asyncio.create_task(self._listen(way)))

    async def _listen(self, way: Discovery) -> None:
        while True:
            heard = await way.heard()
            if isinstance(heard, WrongJoinCode):
                await self.bus.publish(PeerRefused("", FailureCode.WRONG_CODE, heard.sentence))
            else:
                self._membership = self._membership.hear(heard, time.monotonic())


if __name__ == "__main__":
    run_actor(DiscoveryActor, DiscoveryActor.name)
