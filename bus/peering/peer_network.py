"""The other nodes as a hub uses them. `Standalone` is for a node without any, `bus.peering.peering` for a member."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from bus.messages import HubPeer, Message, Reply, RequestFailed
from cluster.failures import FailureCode

STANDALONE = (
    "this node stands alone; make a cluster with `exobus cluster init`, or join one with `exobus node --join CODE`"
)


class PeerNetwork(ABC):
    """Links to other hubs, and how nodes join. Used on the hub's thread only."""

    @property
    @abstractmethod
    def endpoint(self) -> str:
        """The bus port, with the node's key; empty if there is none."""

    @property
    @abstractmethod
    def join_endpoint(self) -> str:
        """The join port, without its key; empty if there is none."""

    @abstractmethod
    def peers(self) -> tuple[HubPeer, ...]:
        """Return the hubs to which a link is up."""

    @abstractmethod
    def name_of(self, node_id: str) -> str:
        """Return the name of a node on file, or the id of any other."""

    @abstractmethod
    def forward(self, node_id: str, frames: Sequence[bytes]) -> bool:
        """Send work to a node. Returns False if no link to it is up, or its queue is full."""

    @abstractmethod
    def publish(self, frames: Sequence[bytes]) -> None:
        """Send a fact of this node to every linked hub that subscribed to its topic."""

    @abstractmethod
    def announce_topics(self, topics: tuple[str, ...]) -> None:
        """Send all linked hubs, now and in future, the topics to which this node's actors subscribe."""

    @abstractmethod
    def wanted_topics(self) -> set[bytes]:
        """Return all topics to which a linked hub subscribed."""

    @abstractmethod
    def serve_actor(self, work: Message) -> Reply:
        """Serve work of an actor of this node about links and members."""

    @abstractmethod
    def serve_hub(self, node_id: str, message: Message | None) -> bool:
        """Serve work of another node's hub about links and members. Returns False if it is about something else.

        Raises WireError if it is not valid.
        """

    @abstractmethod
    def maintain(self, now: float) -> None:
        """Do what is due at this time (monotonic seconds). Called at least every 200 ms."""

    @abstractmethod
    def close(self) -> None:
        """End all links and close all sockets."""


class Standalone(PeerNetwork):
    """The network of a node that belongs to no cluster. It opens no port."""

    endpoint = ""
    join_endpoint = ""

    def peers(self) -> tuple[HubPeer, ...]:
        return ()

    def name_of(self, node_id: str) -> str:
        return node_id

    def forward(self, node_id: str, frames: Sequence[bytes]) -> bool:
        return False

    def publish(self, frames: Sequence[bytes]) -> None:
        pass

    def announce_topics(self, topics: tuple[str, ...]) -> None:
        pass

    def wanted_topics(self) -> set[bytes]:
        return set()

    def serve_actor(self, work: Message) -> Reply:
        return RequestFailed(FailureCode.STANDALONE, STANDALONE)

    def serve_hub(self, node_id: str, message: Message | None) -> bool:
        return False

    def maintain(self, now: float) -> None:
        pass

    def close(self) -> None:
        pass
