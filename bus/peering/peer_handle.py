"""What a node holds of another node. The abstract handle knows no transport; `BusPeerHandle` is the ZeroMQ one.

An actor makes one handle for each peer and keeps it as long as it knows the peer.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import TypeVar

from bus.address import Address
from bus.client import BusClient
from bus.messages import LinkProbe, Message, PeerDial, PeerDrop, RequestDone, Work
from cluster.capabilities import DeviceCapabilities

R = TypeVar("R", bound=Message)

REPLY_TIMEOUT_S = 2.0


class PeerHandle(ABC):
    """Another node: its address, what it is, and how to reach it.

    `id` is its node id, empty until a link to it was up. `description` is its name, `capabilities` those of its last
    record. `is_connected`, `description` and `disconnect` belong to the interface of the original design; exobus itself
    needs only the others.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.id = ""
        self.description = ""
        self.capabilities = DeviceCapabilities()

    @property
    @abstractmethod
    def is_connected(self) -> bool:
        """Whether a link to it is up."""

    @abstractmethod
    async def connect(self) -> None:
        """Start to link; the fact `peer.up` follows when the link is up. Raises RequestError if it cannot start."""

    @abstractmethod
    async def disconnect(self) -> None:
        """End the link, if there is one. Raises RequestError if the hub does not reply."""

    @abstractmethod
    async def health_check(self) -> float:
        """Return the milliseconds of a round trip. Raises RequestError if the node does not reply."""

    @abstractmethod
    async def send(self, actor: str, work: Work, expects: type[R], timeout_s: float) -> R:
        """Send work to one of its actors and return the reply. Raises RequestError."""


class BusPeerHandle(PeerHandle):
    """A node to which this node's hub links.

    `address` is the endpoint of its join port. For a node that is linked already it may be its bus port, which is
    enough to disconnect but not to connect again.
    """

    def __init__(self, bus: BusClient, address: str) -> None:
        super().__init__(address)
        self._bus = bus

    @property
    def is_connected(self) -> bool:
        return bool(self.id)

    def linked(self, node_id: str, name: str) -> None:
        """Note that the hub published `peer.up` for this node."""
        self.id, self.description = node_id, name

    async def connect(self) -> None:
        await self._bus.request("hub", PeerDial(self.address), RequestDone, REPLY_TIMEOUT_S)

    async def disconnect(self) -> None:
        await self._bus.request("hub", PeerDrop(self.address), RequestDone, REPLY_TIMEOUT_S)
        self.id = ""

    async def health_check(self) -> float:
        """Return the milliseconds of a round trip to its topology actor, through both hubs and an actor's loop.

        Raises RequestError if it does not reply.
        """
        start = time.perf_counter()
        await self.send("topology", LinkProbe(), RequestDone, REPLY_TIMEOUT_S)
        return (time.perf_counter() - start) * 1000

    async def send(self, actor: str, work: Work, expects: type[R], timeout_s: float) -> R:
        return await self._bus.request(str(Address(self.id, actor)), work, expects, timeout_s)
