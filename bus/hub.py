"""The node's bus process: local actors over ipc, other nodes' hubs over tcp. It moves frames and reads headers; of
bodies it reads only those addressed to `hub`.

Facts of local actors go to local subscribers and to every linked hub that asked for the topic; a remote fact goes
to local actors only, so nothing loops. Work that cannot be delivered comes back as `request.failed`. Who is behind
a link is what its key says, never what a message says.
"""

from __future__ import annotations

import logging
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence

import zmq

from bus.actor_registry import ActorRegistry
from bus.client import HubPaths
from bus.hub_service import ClusterSide, HubService
from bus.messages import (
    LOCAL_KINDS,
    ActorHello,
    ActorUp,
    LinkBye,
    LinkHello,
    LinkSubscribe,
    Message,
    PeerDown,
    RequestCancel,
    RequestFailed,
    kind_of,
)
from bus.net.sockets import bind_ipc, open_socket
from bus.peering.admin import ClusterAdmin
from bus.peering.authenticator import Authenticator
from bus.peering.inbound_policy import Forbidden, InboundPolicy
from bus.peering.link_state import LinkState
from bus.peering.links import Links
from bus.peering.peering import Peering
from bus.peering.permissions import may_send
from bus.process import CANNOT_START, begin, bound_memory
from bus.pubsub import PubSub
from bus.sequencing import Sequencer
from bus.wire import WireError, decode, decode_header, encode
from cluster.failures import FailureCode
from common.config import NodeConfig
from common.rate_limit import RateLimitedLogger

logger = logging.getLogger(__name__)
limited = RateLimitedLogger(logger)

MOST_MEMORY = 1 << 30  # bytes of address space; at rest it is a quarter. A member's message could else grow without end
_STAY_HERE = frozenset(kind.encode() for kind in LOCAL_KINDS)


class Hub:
    """One hub. `run` serves until `stopped()` is true; everything happens on the calling thread."""

    def __init__(self, config: NodeConfig) -> None:
        """Bind everything. Raises OSError with a sentence where a port, a key or the folder cannot be used."""
        self.node_id, self.name = config.node_id, config.name
        self._config = config
        self.counters: Counter[str] = Counter()
        door = Authenticator.of(config)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.setsockopt(zmq.MAX_SOCKETS, 8192)
        self._poller = zmq.Poller()
        self._facts = PubSub(self._context)
        self._work = open_socket(self._context, zmq.ROUTER)
        self._roster = ActorRegistry()
        self._numbers = Sequencer(f"{config.node_id}/hub")
        self._links = Links(
            self._context,
            self._poller,
            LinkState(config.node_id),
            door.pair if door else None,
            self._numbers,
            self._introduction,
            self._announce,
            self.counters,
        )
        try:
            self._bind(HubPaths(config.run_path))
            self._beyond = self._open_beyond(door) if door else None
        except OSError:
            self._context.destroy(linger=0)
            raise
        self._checks = InboundPolicy(door) if door else None
        self._desk = HubService(config, self._roster, self._links, self._facts, self.counters, self._beyond)
        self._sources: dict[zmq.Socket[bytes], Callable[[], None]] = {
            self._work: self._from_actor,
            self._facts.publishers: self._from_publisher,
            self._facts.subscribers: self._from_subscriber,
        }
        for source in self._sources:
            self._poller.register(source, zmq.POLLIN)

    def _bind(self, paths: HubPaths) -> None:
        facts = {self._facts.publishers: paths.facts_in, self._facts.subscribers: paths.facts_out}
        for socket, path in {**facts, self._work: paths.work}.items():
            bind_ipc(socket, path)

    def _open_beyond(self, door: Authenticator) -> ClusterSide:
        outside = Peering(
            self._context, self._poller, self._config, door, self.counters, self._announce, self._links, self._numbers
        )
        return ClusterSide(door, outside, ClusterAdmin(door, outside, self._links, self._announce))

    @property
    def endpoint(self) -> str:
        """Where other hubs dial this one, with its key; empty where it stands alone."""
        return self._beyond.outside.bus.endpoint if self._beyond else ""

    @property
    def join_endpoint(self) -> str:
        """Where other nodes knock; empty where it has no join port."""
        return self._beyond.outside.join_address if self._beyond else ""

    def run(self, stopped: Callable[[], bool]) -> None:
        """Move messages until `stopped()`; asked at least every 200 ms."""
        while not stopped():
            for socket, _ in self._poller.poll(200):
                self._count(self._sources.get(socket), socket)
            if self._beyond:
                self._beyond.outside.tend(time.monotonic())

    def close(self) -> None:
        """Say good-bye to the other hubs and close everything."""
        self._links.close(LinkBye())
        if self._beyond:
            self._beyond.outside.close()
        for socket in self._sources:
            socket.close(0)
        self._context.term()

    # -- what comes in

    def _count(self, serve: Callable[[], None] | None, socket: zmq.Socket[bytes]) -> None:
        """Serve what came on a socket; what is not ours is counted and dropped."""
        try:
            self._serve(serve, socket)
        except WireError as error:
            self.counters[f"dropped: {error.reason}"] += 1
            limited.warning(error.reason, "dropped what is no message of ours: %s", error)
        except UnicodeDecodeError:
            self.counters["dropped: address"] += 1

    def _serve(self, serve: Callable[[], None] | None, socket: zmq.Socket[bytes]) -> None:
        try:
            serve() if serve else self._from_elsewhere(socket)
        except Forbidden as error:
            header = error.header
            self._fail(header.sender, header.id, header.cause, FailureCode.FORBIDDEN, error.sentence)
            raise

    def _from_elsewhere(self, socket: zmq.Socket[bytes]) -> None:
        outside = self._beyond.outside if self._beyond else None
        if outside and socket is outside.bus.socket:
            self._from_hub(outside)
        elif outside is None or not outside.serve(socket):
            self._links.from_monitor(socket)

    def _from_actor(self) -> None:
        routing_id, *frames = self._work.recv_multipart()
        node_id, _, actor = frames[0].decode().partition("/")
        sender = decode_header(frames).sender.partition("/")[2]
        self._roster.heard(sender, routing_id, time.monotonic())
        self._facts.tap(frames)
        if node_id not in ("", self.node_id):
            self._forward(node_id, frames)
        elif actor == "hub":
            self._serve_actor(routing_id, frames)
        else:
            self._deliver(actor, frames)

    def _serve_actor(self, routing_id: bytes, frames: list[bytes]) -> None:
        envelope = decode(frames)
        message = envelope.message
        if not isinstance(message, ActorHello):
            self._answer(envelope.header.sender, envelope.header.id, self._desk.from_actor(envelope))
        elif self._desk.hello(message, routing_id):
            self._announce(ActorUp(message.name, message.pid))

    def _from_hub(self, outside: Peering) -> None:
        assert self._checks is not None, "a node that stands alone hears no hub"
        node_id, _, frames = outside.bus.receive()
        header = self._checks.check(node_id, frames)
        if b"/" not in frames[0]:
            self._fact_from_hub(header.kind, frames)
            return
        to, _, actor = frames[0].decode().partition("/")
        if actor == "hub":
            envelope = decode(frames)
            self._answer(header.sender, header.id, self._desk.from_hub(node_id, envelope))
            self._facts.filter_at_source(self._links.wanted())
            return
        if to != self.node_id:
            raise WireError("misdirected")
        self._facts.tap(frames)
        self._deliver(actor, frames)

    def _fact_from_hub(self, kind: str, frames: list[bytes]) -> None:
        if frames[0] in _STAY_HERE or frames[0] != kind.encode():
            raise WireError("misdirected")
        self._facts.tell(frames)

    def _from_publisher(self) -> None:
        frames = self._facts.next_fact()
        self._facts.tell(frames)
        if self._beyond and may_send(self._beyond.door.role, frames[0].decode()):
            self._links.publish(frames)

    def _from_subscriber(self) -> None:
        self._facts.next_subscription()
        self._links.tell_all(LinkSubscribe(self._facts.topics()))
        self._facts.filter_at_source(self._links.wanted())

    # -- what goes out

    def _deliver(self, actor: str, frames: Sequence[bytes]) -> None:
        try:
            if (routing_id := self._roster.routing_id(actor)) is None:
                raise zmq.ZMQError(zmq.EHOSTUNREACH)
            self._work.send_multipart([routing_id, *frames], zmq.DONTWAIT)
        except zmq.Again:
            self._undeliverable(frames, f"{actor} on node {self.name} has too much work waiting; try again soon")
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self._roster.forget(actor)
            self._undeliverable(frames, f"no actor {actor!r} answers on node {self.name}")

    def _forward(self, node_id: str, frames: Sequence[bytes]) -> None:
        if not self._links.forward(node_id, frames):
            self._undeliverable(frames, f"node {node_id} is not linked to {self.name}")

    def _undeliverable(self, frames: Sequence[bytes], why: str) -> None:
        """Tell the sender, unless what could not be delivered was itself an answer or a cancel."""
        header = decode_header(frames)
        self.counters["undeliverable"] += 1
        if header.kind != kind_of(RequestCancel):
            self._fail(header.sender, header.id, header.cause, FailureCode.UNDELIVERABLE, why)

    def _fail(self, to: str, request: str, cause: str, code: FailureCode, why: str) -> None:
        """Tell an asker that its work was not done; an answer is never answered."""
        if not cause:
            self._answer(to, request, RequestFailed(code, why))

    def _answer(self, to: str, request: str, reply: Message | None) -> None:
        if reply is None:
            return
        frames = encode(to, self._numbers.header(reply, to, request), reply)
        node_id, _, actor = to.partition("/")
        if node_id == self.node_id:
            self._deliver(actor, frames)
        else:
            self._forward(node_id, frames)

    def _announce(self, fact: Message) -> None:
        kind = kind_of(type(fact))
        self._facts.tell(encode(kind, self._numbers.header(fact, kind), fact))
        if isinstance(fact, PeerDown) and self._checks:
            self._checks.forget(fact.node_id)

    def _introduction(self) -> LinkHello:
        life, topics = self._config.incarnation, self._facts.topics()
        revoked = self._beyond.door.members.revoked if self._beyond else ()
        return LinkHello(
            self.node_id, self.name, life, self.endpoint, topics, join_endpoint=self.join_endpoint, revoked=revoked
        )


def main() -> None:
    """The hub's process: `python -m bus.hub`, started by a node's supervisor."""
    config = begin("hub")
    bound_memory(MOST_MEMORY)
    stopping: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _frame: stopping.append(number))
    try:
        hub = Hub(config)
    except OSError as error:
        logger.error("%s", error)
        raise SystemExit(CANNOT_START) from None
    try:
        hub.run(lambda: bool(stopping))
    finally:
        hub.close()


if __name__ == "__main__":
    main()
