"""The base class of actors with a data plane: its allowlist follows the links of the node's hub."""

from __future__ import annotations

from bus.actor import Actor, on
from bus.client import BusClient
from bus.dataplane.access import access_of
from bus.messages import PeerDown, PeerUp
from bus.wire import Envelope
from common.config import NodeConfig


class DataPlaneActor(Actor):
    """Keeps the allowlist of its node's access up to date."""

    def __init__(self, config: NodeConfig, bus: BusClient) -> None:
        """Read the node's key. Raises PrivateFileError if it cannot be read."""
        super().__init__(bus)
        self._config = config
        self._access = access_of(config)
        self._allowlist = self._access.allowlist  # None on a node that stands alone

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
