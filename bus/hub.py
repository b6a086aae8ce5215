"""The node's bus process: local actors over ipc, other nodes' hubs over one tcp port. It moves frames and reads
headers; of bodies it reads only those addressed to `hub`.

Facts of local actors go to local subscribers and to every linked hub that asked for the topic; a remote fact goes
to local actors only, so nothing loops. Work that cannot be delivered comes back as `request.failed`.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence

import zmq

from bus.client import HubPaths
from bus.config import DEFAULT_BUS_PORT, NodeConfig, ports_to_try
from bus.facts import Facts
from bus.links import Links
from bus.mesh import Mesh
from bus.messages import (
    LOCAL_KINDS,
    ActorHello,
    ActorUp,
    HubActor,
    HubDescribe,
    HubState,
    LinkBye,
    LinkHello,
    LinkSubscribe,
    Message,
    PeerDial,
    PeerDrop,
    Reply,
    RequestCancel,
    RequestDone,
    RequestFailed,
    kind_of,
)
from bus.process import CANNOT_START, begin
from bus.roster import Roster
from bus.sockets import bind_first, open_socket
from bus.wire import Envelope, WireError, decode, decode_header, encode, new_header

logger = logging.getLogger(__name__)

_STAY_HERE = frozenset(kind.encode() for kind in LOCAL_KINDS)


class Hub:
    """One hub. `run` serves until `stopped()` is true; everything happens on the calling thread."""

    def __init__(self, config: NodeConfig) -> None:
        """Bind everything. Raises OSError with a sentence where a port or the folder cannot be used."""
        self.node_id, self.name = config.node_id, config.name
        self._config = config
        self.counters: Counter[str] = Counter()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.setsockopt(zmq.MAX_SOCKETS, 8192)
        self._facts = Facts(self._context)
        self._work = open_socket(self._context, zmq.ROUTER)
        self._tcp = open_socket(self._context, zmq.ROUTER)
        try:
            self.endpoint = self._bind(HubPaths(config.run_path), ports_to_try(config.bus_port, DEFAULT_BUS_PORT))
        except OSError:
            self._context.destroy(linger=0)
            raise
        self._roster = Roster()
        self._sequence = 0
        self._poller = zmq.Poller()
        mesh = Mesh(config.node_id, config.cluster)
        self._links = Links(self._context, self._poller, mesh, self._introduction, self._announce, self.counters)
        self._sources: dict[zmq.Socket[bytes], Callable[[], None]] = {
            self._work: self._from_actor,
            self._tcp: self._from_hub,
            self._facts.publishers: self._from_publisher,
            self._facts.subscribers: self._from_subscriber,
        }
        for source in self._sources:
            self._poller.register(source, zmq.POLLIN)

    def _bind(self, paths: HubPaths, ports: Sequence[int]) -> str:
        endpoint = bind_first(self._tcp, self._config.host, ports)
        facts = {self._facts.publishers: paths.facts_in, self._facts.subscribers: paths.facts_out}
        ipc = {**facts, self._work: paths.work}
        for socket, path in ipc.items():
            try:
                socket.bind(path)
            except zmq.ZMQError as error:
                raise OSError(
                    f"cannot listen on {path}: {zmq.strerror(error.errno or 0)}; check the temporary folder"
                ) from None
        return endpoint

    def run(self, stopped: Callable[[], bool]) -> None:
        """Move messages until `stopped()`; asked at least every 200 ms."""
        while not stopped():
            for socket, _ in self._poller.poll(200):
                if source := self._sources.get(socket):
                    source()
                else:
                    self._links.from_monitor(socket)

    def close(self) -> None:
        """Say good-bye to the other hubs and close everything."""
        self._links.close(LinkBye())
        for socket in self._sources:
            socket.close(0)
        self._context.term()

    # -- what comes in

    def _from_actor(self) -> None:
        routing_id, *frames = self._work.recv_multipart()
        self._count(self._work_from_actor, routing_id, frames)

    def _work_from_actor(self, routing_id: bytes, frames: list[bytes]) -> None:
        node_id, _, actor = frames[0].decode().partition("/")
        sender = decode_header(frames).sender.partition("/")[2]
        self._roster.heard(sender, routing_id, time.monotonic())
        self._facts.tap(frames)
        if node_id not in ("", self.node_id):
            self._forward(node_id, frames)
        elif actor == "hub":
            self._serve_actor(routing_id, decode(frames))
        else:
            self._deliver(actor, frames)

    def _from_hub(self) -> None:
        parts = self._tcp.recv_multipart(copy=False)
        source, *frames = (part.bytes for part in parts)
        self._count(self._message_from_hub, source, frames, _peer_address(parts[-1]))

    def _message_from_hub(self, source: bytes, frames: list[bytes], peer_address: str) -> None:
        if b"/" not in frames[0]:
            self._fact_from_hub(source, frames)
            return
        node_id, _, actor = frames[0].decode().partition("/")
        if actor == "hub":
            self._serve_hub(source, decode(frames), peer_address)
            return
        self._check_sender(source, frames)
        if node_id != self.node_id:
            raise WireError("misdirected")
        self._facts.tap(frames)
        self._deliver(actor, frames)

    def _fact_from_hub(self, source: bytes, frames: list[bytes]) -> None:
        self._check_sender(source, frames)
        if frames[0] in _STAY_HERE or frames[0] != decode_header(frames).kind.encode():
            raise WireError("misdirected")
        self._facts.tell(frames)

    def _check_sender(self, source: bytes, frames: Sequence[bytes]) -> None:
        """A hub speaks for its own actors only."""
        node_id = self._links.node_of(source)
        if decode_header(frames).sender.partition("/")[0] != node_id:
            raise WireError("sender")

    def _from_publisher(self) -> None:
        frames = self._facts.next_fact()
        self._facts.tell(frames)
        if frames[0] not in _STAY_HERE:
            self._links.publish(frames)

    def _from_subscriber(self) -> None:
        self._facts.next_subscription()
        self._links.tell_all(LinkSubscribe(self._facts.topics()))
        self._facts.filter_at_source(self._links.wanted())

    def _count(self, serve: Callable[..., None], *arguments: object) -> None:
        """Serve frames from outside; what is not ours is counted and dropped."""
        try:
            serve(*arguments)
        except WireError as error:
            self.counters[f"dropped: {error.reason}"] += 1
        except UnicodeDecodeError:
            self.counters["dropped: address"] += 1

    # -- work for the hub itself

    def _serve_actor(self, routing_id: bytes, envelope: Envelope) -> None:
        message = envelope.message
        if isinstance(message, ActorHello):
            if self._roster.meet(message, routing_id, time.monotonic()):
                self._announce(ActorUp(message.name, message.pid))
        elif isinstance(message, HubDescribe):
            self._answer(envelope, self._state())
        elif isinstance(message, PeerDial):
            self._links.dial(message.endpoint)
            self._answer(envelope, RequestDone())
        elif isinstance(message, PeerDrop):
            self._links.drop(message.endpoint)
            self._answer(envelope, RequestDone())
        else:
            self._refuse(envelope)

    def _serve_hub(self, source: bytes, envelope: Envelope, peer_address: str) -> None:
        message = envelope.message
        if isinstance(message, LinkHello):
            self._links.greeted(source, message, peer_address)
            self._facts.filter_at_source(self._links.wanted())
            return
        node_id = self._links.node_of(source)
        if envelope.node != node_id:
            raise WireError("sender")
        if isinstance(message, LinkSubscribe):
            self._links.wants(node_id, message)
            self._facts.filter_at_source(self._links.wanted())
        elif isinstance(message, LinkBye):
            self._links.left(node_id)
        elif isinstance(message, HubDescribe):
            self._answer(envelope, self._state())
        else:
            self._refuse(envelope)

    def _refuse(self, envelope: Envelope) -> None:
        """Say so to whoever asks for what a hub does not do; replies and cancels are nothing to answer."""
        if not isinstance(envelope.message, Reply | RequestCancel) and not envelope.header.cause:
            self._answer(envelope, RequestFailed("unsupported", f"a hub does not serve {envelope.header.kind}"))

    def _introduction(self) -> LinkHello:
        life, cluster = self._config.incarnation, self._config.cluster
        return LinkHello(self.node_id, self.name, life, self.endpoint, cluster, self._facts.topics())

    def _state(self) -> HubState:
        own = HubActor("hub", os.getpid())
        return HubState(
            self.node_id,
            self.name,
            self.endpoint,
            (own, *self._roster.present(time.monotonic())),
            self._links.standing(),
            self._facts.topics(),
            dict(self.counters),
        )

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
        if header.cause or header.kind == kind_of(RequestCancel):
            return
        failed = RequestFailed("undeliverable", why)
        answer = encode(header.sender, new_header(failed, f"{self.node_id}/hub", cause=header.id), failed)
        self._route(header.sender, answer)

    def _answer(self, envelope: Envelope, reply: Message) -> None:
        to = envelope.header.sender
        self._route(to, encode(to, new_header(reply, f"{self.node_id}/hub", cause=envelope.header.id), reply))

    def _route(self, to: str, frames: Sequence[bytes]) -> None:
        node_id, _, actor = to.partition("/")
        if node_id == self.node_id:
            self._deliver(actor, frames)
        else:
            self._forward(node_id, frames)

    def _announce(self, fact: Message) -> None:
        self._sequence += 1
        header = new_header(fact, f"{self.node_id}/hub", sequence=self._sequence)
        self._facts.tell(encode(header.kind, header, fact))


def _peer_address(part: zmq.Frame) -> str:
    """Where a message came from; one that speaks an old ZMTP, as random bytes may seem to, has no such property."""
    try:
        return str(part.get("Peer-Address") or "")
    except zmq.ZMQError:
        return ""


def main() -> None:
    """The hub's process: `python -m bus.hub`, started by a node's supervisor."""
    config = begin("hub")
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
