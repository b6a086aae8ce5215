"""What an actor with a data plane has in common with every other: whose frames it takes follows its hub's links."""

from __future__ import annotations

from contextlib import suppress

from bus.actor import Actor, every, on
from bus.client import BusClient, RequestError
from bus.dataplane.access import cluster_access
from bus.messages import HubDescribe, HubState, PeerDown, PeerUp
from bus.wire import Envelope
from common.config import NodeConfig

HUB_WITHIN_S = 5.0
LOOK_EVERY_S = 5.0


class DataPlaneActor(Actor):
    """Keeps its node's reach true. Subclasses call `follow_links` before they listen."""

    def __init__(self, config: NodeConfig, bus: BusClient) -> None:
        """Raises PrivateFileError where the node's key cannot be read."""
        super().__init__(bus)
        self._config = config
        self._reach = cluster_access(config)

    async def follow_links(self) -> None:
        """Ask the hub for the links that stood before we came: only linked nodes' frames are taken."""
        if self._reach:
            state = await self.bus.request("hub", HubDescribe(), HubState, HUB_WITHIN_S)
            self._reach.linked.standing(state.peers)

    @every(LOOK_EVERY_S)
    async def look(self) -> None:
        """Facts may be lost, so look how links stand."""
        if self._reach:
            with suppress(RequestError):  # a hub that is started again answers the next time
                state = await self.bus.request("hub", HubDescribe(), HubState, HUB_WITHIN_S)
                self._reach.linked.seen(state.peers)

    @on(PeerUp)
    async def peer_up(self, message: PeerUp, envelope: Envelope) -> None:
        """From now on its frames are taken."""
        if self._reach:
            self._reach.linked.standing([message])

    @on(PeerDown)
    async def peer_down(self, message: PeerDown, envelope: Envelope) -> None:
        """From now on its frames are not taken, nor any sent to it."""
        if self._reach:
            self._reach.linked.gone(message.node_id)
