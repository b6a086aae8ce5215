"""The interface of every discovery strategy: announce this node, receive the announcements of others."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter

from cluster.join_code import ClusterKeys
from discovery.beacon import Beacon
from discovery.beacon_filter import WrongJoinCode


class Discovery(ABC):
    """One way to find other nodes. Runs on one asyncio loop; `start` and `stop` are called once each."""

    @property
    @abstractmethod
    def dropped(self) -> Counter[str]:
        """How many datagrams were received and not accepted, by reason."""

    @abstractmethod
    async def start(self) -> None:
        """Begin to listen, and to announce if there is a beacon. Raises OSError with a sentence if it cannot."""

    @abstractmethod
    def announce(self, own: Beacon | None) -> None:
        """Announce this beacon from now on, with a rising counter; None stops the announcements."""

    @abstractmethod
    def use_keys(self, keys: ClusterKeys) -> None:
        """Send and accept beacons under the keys of a new join code from now on."""

    @abstractmethod
    async def receive(self) -> Beacon | WrongJoinCode:
        """Wait for the next genuine beacon of any node, this one too, or for news of a node with another join code."""

    @abstractmethod
    async def stop(self) -> None:
        """Announce that this node leaves, if it was announced, and close."""
