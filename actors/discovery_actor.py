"""The discovery actor: runs the discovery strategies and has the hub dial the join ports that they find.

Which join port is dialled when is decided in `discovery.candidates`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter

from cachetools import LRUCache

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
from bus.peering.peer_handle import BusPeerHandle, PeerHandle
from bus.process import CannotStart, run_actor
from bus.wire import Envelope
from cluster.failures import FailureCode
from cluster.roles import Role
from common.config import NodeConfig
from common.private_files import PrivateFileError
from discovery.beacon import Beacon
from discovery.beacon_filter import WrongJoinCode
from discovery.candidates import MAX_CANDIDATES, Candidates
from discovery.discovery import Discovery
from discovery.manual import peer_endpoint
from discovery.udp import NoBroadcastError, UdpDiscovery

logger = logging.getLogger(__name__)


class DiscoveryActor(Actor):
    """Finds other nodes. A node that stands alone opens no port here and dials none; only members are announced."""

    name = "discovery"

    def __init__(self, config: NodeConfig, bus: BusClient) -> None:
        super().__init__(bus)
        self._config = config
        self._candidates = Candidates(config.node_id)
        self._peers: LRUCache[str, PeerHandle] = LRUCache(MAX_CANDIDATES)  # by join endpoint
        self._role = Role.OBSERVER
        self._strategies: list[Discovery] = []
        self._listening: list[asyncio.Task[None]] = []
        self._logged: Counter[str] = Counter()

    async def started(self) -> None:
        """Pin the peers of `--peer`, then announce this node and listen. Raises CannotStart with a sentence."""
        try:
            keys = cluster_keys(self._config)
            if keys is None:
                return
            self._role = keys.role
            for peer in self._config.peers:
                self._candidates = self._candidates.pin(peer_endpoint(peer))
            if self._config.discovery_port:
                udp = UdpDiscovery(self._config.host, self._config.discovery_port, keys)
                await udp.start()
                self._strategies.append(udp)
                self._listening.append(asyncio.create_task(self._listen(udp)))
        except NoBroadcastError as error:
            logger.warning("%s", error)
        except (PrivateFileError, ValueError, OSError) as error:
            raise CannotStart(str(error)) from None
        await self._announce()

    async def stopping(self) -> None:
        """Stop listening, and announce that this node leaves."""
        for task in self._listening:
            task.cancel()
        await asyncio.gather(*self._listening, return_exceptions=True)
        for strategy in self._strategies:
            await strategy.stop()

    @on(PeerAuthenticated)
    async def peer_authenticated(self, message: PeerAuthenticated, envelope: Envelope) -> None:
        """Note which node a join port belongs to."""
        self._candidates = self._candidates.identified(
            message.endpoint, message.node_id, message.name, time.monotonic()
        )

    @on(PeerRefused)
    async def peer_refused(self, message: PeerRefused, envelope: Envelope) -> None:
        """Dial a join port that refused us later."""
        self._candidates = self._candidates.refused(message.endpoint, message.code, time.monotonic())

    @on(PeerUp)
    async def peer_up(self, message: PeerUp, envelope: Envelope) -> None:
        """Stop dialling a node that is linked."""
        self._candidates = self._candidates.linked(message.node_id, time.monotonic())

    @on(PeerDown)
    async def peer_down(self, message: PeerDown, envelope: Envelope) -> None:
        """Dial a node again after its link went down."""
        self._candidates = self._candidates.unlinked(message.node_id, time.monotonic())

    @on(ActorUp)
    async def actor_up(self, message: ActorUp, envelope: Envelope) -> None:
        """Announce the join port again once the hub lists this actor: one of the two was started."""
        if message.name == self.bus.name and self._config.cluster:
            await self._announce()

    @on(ClusterChanged)
    async def cluster_changed(self, message: ClusterChanged, envelope: Envelope) -> None:
        """Send and accept beacons under the new join code from now on."""
        if keys := cluster_keys(self._config):
            for strategy in self._strategies:
                strategy.use_keys(keys)
            await self._announce()

    @every(0.25)
    async def dial(self) -> None:
        """Have the hub dial the join ports that are due. One that it cannot dial is due again after its back-off."""
        self._candidates, join_endpoints = self._candidates.due(time.monotonic())
        for join_endpoint in join_endpoints:
            if join_endpoint not in self._peers:
                self._peers[join_endpoint] = BusPeerHandle(self.bus, join_endpoint)
            try:
                await self._peers[join_endpoint].connect()
            except RequestError as error:
                logger.info("not dialling %s: %s", join_endpoint, error)

    @every(60.0)
    async def log_dropped(self) -> None:
        """Log how many datagrams were not accepted, if there are more than before."""
        dropped = sum((strategy.dropped for strategy in self._strategies), Counter(self._candidates.dropped))
        if dropped != self._logged:
            logger.info("beacons not accepted so far: %s", dict(dropped))
        self._logged = dropped

    async def _announce(self) -> None:
        """Announce the hub's join port if this node is a member."""
        state = await self.bus.request("hub", HubDescribe(), HubState, 5.0)
        config, own = self._config, None
        if self._role is Role.MEMBER and state.join_endpoint:
            own = Beacon(config.node_id, config.name, config.incarnation, 0, state.join_endpoint)
        for strategy in self._strategies:
            strategy.announce(own)

    async def _listen(self, strategy: Discovery) -> None:
        while True:
            received = await strategy.receive()
            if isinstance(received, WrongJoinCode):
                await self.bus.publish(PeerRefused("", FailureCode.WRONG_CODE, received.sentence))
            else:
                self._candidates = self._candidates.beacon_received(received, time.monotonic())


if __name__ == "__main__":
    run_actor(DiscoveryActor, DiscoveryActor.name)
