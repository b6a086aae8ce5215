"""What every way of finding nodes is: something that announces this node and yields what it hears."""

from __future__ import annotations

from abc import ABC, abstractmethod

from cluster.membership import Beacon


class Discovery(ABC):
    """One way to find other nodes. Serves one asyncio loop; `start` and `stop` are called once each."""

    @abstractmethod
    async def start(self, own: Beacon) -> None:
        """Begin to listen, and to announce `own`. Raises OSError with a sentence where it cannot."""

    @abstractmethod
    async def heard(self) -> Beacon:
        """The next beacon of anyone, this node too. Waits for as long as it takes."""

    @abstractmethod
    async def stop(self) -> None:
        """Say good-bye where the way allows it, and close."""
