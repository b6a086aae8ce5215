"""The base class of actors with a data plane: its allowlist follows the links of the node's hub."""

from __future__ import annotations

from contextlib import suppress

from bus.actor import Actor, every, on
from bus.client import BusClient, RequestError
from bus.dataplane.access import access_of
from bus.messages import HubDescribe, HubPeer, HubState, PeerDown, PeerUp
from bus.wire import Envelope
from common.config import NodeConfig

HUB_TIMEOUT_S = 5.0
RECONCILE_EVERY_S = 5.0


class DataPlaneActor(Actor):
    """Keeps the allowlist of its node's access up to date. Subclasses call `follow_links` before they listen."""

    def __init__(self, config: NodeConfig, bus: BusClient) -> None:
        """Read the node's key. Raises PrivateFileError if it cannot be read."""
        super().__init__(bus)
        self._config = config
        self._access = access_of(config)
        self._allowlist = self._access.allowlist  # None on a node that stands alone

    async def follow_links(self) -> None:
        """Accept the nodes that were linked before this actor started."""
        if self._allowlist:
            self._allowlist.add(await self._peers())

    @every(RECONCILE_EVERY_S)
    async def reconcile_links(self) -> None:
        """Compare the allowlist with the hub's links: facts may be lost."""
        if self._allowlist:
            with suppress(RequestError):  # a hub that is being restarted answers the next time
                self._allowlist.reconcile(await self._peers())

    @on(PeerUp)
    async def peer_up(self, message: PeerUp, envelope: Envelope) -> None:
        """Accept the node's frames from now on."""
        if self._allowlist:
            self._allowlist.add([message])

    @on(PeerDown)
    async def peer_down(self, message: PeerDown, envelope: Envelope) -> None:
        """Neither accept the node's frames from now on nor send it any."""
        if self._allowlist:
            self._allowlist.remove(message.node_id)

    async def _peers(self) -> tuple[HubPeer, ...]:
        state = await self.bus.request("hub", HubDescribe(), HubState, HUB_TIMEOUT_S)
        return state.peers
