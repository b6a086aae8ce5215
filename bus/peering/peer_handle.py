"""What a node holds of another node. The abstract handle knows no transport; `BusPeerHandle` is the ZeroMQ one."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import TypeVar

from bus.client import BusClient
from bus.messages import LinkProbe, Message, PeerDial, PeerDrop, RequestDone, Work
from cluster.capabilities import DeviceCapabilities

R = TypeVar("R", bound=Message)

ANSWER_WITHIN_S = 2.0


class PeerHandle(ABC):
    """Another node: who it is, where it is, and the way to it.

    `id` is empty until the node has introduced itself, `description` is its name, `capabilities` is what its
    last record said.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.id = ""
        self.description = ""
        self.capabilities = DeviceCapabilities()

    @property
    @abstractmethod
    def is_connected(self) -> bool:
        """Whether a link to it stands."""

    @abstractmethod
    async def connect(self) -> None:
        """Begin to link; that the link stands is told by a fact. Raises RequestError where it cannot begin."""

    @abstractmethod
    async def disconnect(self) -> None:
        """End the link. One that does not stand is no error."""

    @abstractmethod
    async def health_check(self) -> float:
        """Milliseconds of a round trip to it and back. Raises RequestError where it does not answer."""

    @abstractmethod
    async def send(self, actor: str, work: Work, expects: type[R], deadline_s: float) -> R:
        """Send work to one of its actors and await the reply. Raises RequestError."""


class BusPeerHandle(PeerHandle):
    """A node behind this node's hub.

    `address` is that of its join port, which the hub knocks at. For a node that is linked already it may be the end
    point of
    its hub, which is enough to end the link but not to make it anew.
    """

    def __init__(self, bus: BusClient, address: str) -> None:
        super().__init__(address)
        self._bus = bus

    @property
    def is_connected(self) -> bool:
        """See the base class: a node that has introduced itself is linked until the hub says otherwise."""
        return bool(self.id)

    def linked(self, node_id: str, name: str) -> None:
        """The hub says that the link stands."""
        self.id, self.description = node_id, name

    async def connect(self) -> None:
        """See the base class."""
        await self._bus.request("hub", PeerDial(self.address), RequestDone, ANSWER_WITHIN_S)

    async def disconnect(self) -> None:
        """See the base class."""
        await self._bus.request("hub", PeerDrop(self.address), RequestDone, ANSWER_WITHIN_S)
        self.id = ""

    async def health_check(self) -> float:
        """See the base class. Its topology actor answers, so hubs and an actor's loop are both on the way."""
        begun = time.perf_counter()
        await self.send("topology", LinkProbe(), RequestDone, ANSWER_WITHIN_S)
        return (time.perf_counter() - begun) * 1000

    async def send(self, actor: str, work: Work, expects: type[R], deadline_s: float) -> R:
        """See the base class."""
        return await self._bus.request(f"{self.id}/{actor}", work, expects, deadline_s)
