"""What every way of finding nodes is: something that announces this node and yields what it hears."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter

from cluster.join_code import ClusterKeys
from discovery.beacon import Beacon
from discovery.beacon_filter import WrongJoinCode


class Discovery(ABC):
    """One way to find other nodes. Serves one asyncio loop; `start` and `stop` are called once each."""

    @property
    @abstractmethod
    def dropped(self) -> Counter[str]:
        """How often something was heard and not believed, by reason."""

    @abstractmethod
    async def start(self) -> None:
        """Begin to listen. Raises OSError with a sentence where it cannot."""

    @abstractmethod
    def announce(self, own: Beacon | None) -> None:
        """Say this of ourselves from now on, with a counter that rises; None: say nothing."""

    @abstractmethod
    def use(self, keys: ClusterKeys) -> None:
        """The join code is another now: speak and listen with its keys."""

    @abstractmethod
    async def heard(self) -> Beacon | WrongJoinCode:
        """The next genuine beacon of anyone, this node too, or that somebody's join code is not ours.

        Waits for as long as it takes.
        """

    @abstractmethod
    async def stop(self) -> None:
        """Say good-bye where the way allows it, and close."""
