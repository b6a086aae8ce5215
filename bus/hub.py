"""The node's bus process: local actors over ipc, other nodes' hubs over tcp. It moves frames and reads headers; of
bodies it reads only those addressed to `hub`.

Facts of local actors go to local subscribers and to every linked hub that asked for the topic; a remote fact goes
to local actors only, so nothing loops. Work that cannot be delivered comes back as `request.failed`. Who is behind
a link is what its key says, never what a message says.
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
from bus.cluster_work import ClusterWork
from bus.config import NodeConfig
from bus.doorkeeper import Doorkeeper
from bus.endpoints import node_of
from bus.facts import Facts
from bus.links import Links
from bus.mesh import Mesh
from bus.messages import (
    LOCAL_KINDS,
    ActorHello,
    ActorUp,
    ClusterRotate,
    HubActor,
    HubDescribe,
    HubState,
    LinkBye,
    LinkHello,
    LinkSubscribe,
    MemberApprove,
    MemberRevoke,
    MembersGet,
    Message,
    PeerDial,
    PeerDrop,
    Reply,
    RequestCancel,
    RequestDone,
    RequestFailed,
    Work,
    kind_of,
)
from bus.outside import Outside
from bus.process import CANNOT_START, begin
from bus.roster import Roster
from bus.sockets import bind_ipc, open_socket
from bus.wire import Envelope, WireError, decode, decode_header, encode, new_header
from cluster.roles import Role

logger = logging.getLogger(__name__)

ALONE = "this node stands alone; make a cluster with `exobus cluster init`, or join one with `exobus node --join CODE`"
_OUTSIDE = (PeerDial, PeerDrop, MembersGet, MemberRevoke, MemberApprove, ClusterRotate)
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
        self._poller = zmq.Poller()
        self._facts = Facts(self._context)
        self._work = open_socket(self._context, zmq.ROUTER)
        self._roster = Roster()
        self._sequence = 0
        self._door = Doorkeeper.of(config)
        own, mesh = self._door.pair if self._door else None, Mesh(config.node_id)
        self._links = Links(self._context, self._poller, mesh, own, self._introduction, self._announce, self.counters)
        try:
            self._bind(HubPaths(config.run_path))
            self._outside = self._open_outside(self._door) if self._door else None
        except OSError:
            self._context.destroy(linger=0)
            raise
        self._sources: dict[zmq.Socket[bytes], Callable[[], None]] = {
            self._work: self._from_actor,
            self._facts.publishers: self._from_publisher,
            self._facts.subscribers: self._from_subscriber,
        }
        for source in self._sources:
            self._poller.register(source, zmq.POLLIN)
        if self._door and self._outside:
            self._sources[self._outside.bus.socket] = self._from_hub
            self._cluster = ClusterWork(self._door, self._outside, self._links, self._announce)

    def _bind(self, paths: HubPaths) -> None:
        facts = {self._facts.publishers: paths.facts_in, self._facts.subscribers: paths.facts_out}
        for socket, path in {**facts, self._work: paths.work}.items():
            bind_ipc(socket, path)

    def _open_outside(self, door: Doorkeeper) -> Outside:
        return Outside(self._context, self._poller, self._config, door, self.counters, self._announce, self._links)

    @property
    def endpoint(self) -> str:
        """Where other hubs dial this one, with its key; empty where it stands alone."""
        return self._outside.bus.endpoint if self._outside else ""

    @property
    def gate(self) -> str:
        """Where other nodes knock; empty where it has no gate."""
        return self._outside.gate_address if self._outside else ""

    def run(self, stopped: Callable[[], bool]) -> None:
        """Move messages until `stopped()`; asked at least every 200 ms."""
        while not stopped():
            for socket, _ in self._poller.poll(200):
                if source := self._sources.get(socket):
                    source()
                else:
                    self._count(self._from_elsewhere, socket)
            if self._outside:
                self._outside.tend(time.monotonic())

    def _from_elsewhere(self, socket: zmq.Socket[bytes]) -> None:
        if self._outside is None or not self._outside.serve(socket):
            self._links.from_monitor(socket)

    def close(self) -> None:
        """Say good-bye to the other hubs and close everything."""
        self._links.close(LinkBye())
        if self._outside:
            self._outside.close()
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
        self._count(self._next_from_hub)

    def _next_from_hub(self) -> None:
        assert self._outside is not None, "a node that stands alone hears no hub"
        node_id, _, frames = self._outside.bus.receive()
        self._check_sender(node_id, frames)
        if b"/" not in frames[0]:
            self._fact_from_hub(frames)
            return
        to, _, actor = frames[0].decode().partition("/")
        if actor == "hub":
            self._serve_hub(node_id, decode(frames))
            return
        if to != self.node_id:
            raise WireError("misdirected")
        self._facts.tap(frames)
        self._deliver(actor, frames)

    def _fact_from_hub(self, frames: list[bytes]) -> None:
        if frames[0] in _STAY_HERE or frames[0] != decode_header(frames).kind.encode():
            raise WireError("misdirected")
        self._facts.tell(frames)

    def _check_sender(self, node_id: str, frames: Sequence[bytes]) -> None:
        """A hub speaks for its own actors only, while it is let in, and says what its role may."""
        member = self._door.member(node_id) if self._door else None
        if member is None:
            raise WireError("foreign")
        header = decode_header(frames)
        if header.sender.partition("/")[0] != node_id:
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
        elif isinstance(message, Work) and (reply := self._serve_outside(message)):
            self._answer(envelope, reply)
        else:
            self._refuse(envelope)

    def _serve_outside(self, message: Work) -> Reply | None:
        """Work of the own node that concerns other nodes; None for what no hub does."""
        if self._outside is None:
            return RequestFailed("standalone", ALONE) if isinstance(message, _OUTSIDE) else None
        if isinstance(message, PeerDial):
            return self._dial(self._outside, message.endpoint)
        if isinstance(message, PeerDrop):
            self._links.drop(self._outside.gates.get(message.endpoint, message.endpoint))
            return RequestDone()
        return self._cluster.serve(message)

    def _dial(self, outside: Outside, endpoint: str) -> Reply:
        try:
            outside.knock(endpoint)
        except ValueError as error:
            return RequestFailed("bad_endpoint", str(error))
        return RequestDone()

    def _serve_hub(self, node_id: str, envelope: Envelope) -> None:
        """Work of another node's hub for this one."""
        message = envelope.message
        if isinstance(message, LinkHello):
            self._greeted(node_id, message)
        elif isinstance(message, LinkSubscribe):
            self._links.wants(node_id, message)
        elif isinstance(message, LinkBye):
            self._links.left(node_id)
        elif isinstance(message, HubDescribe):
            self._answer(envelope, self._state())
        elif not isinstance(message, Work) or not self._cluster.hear(message):
            self._refuse(envelope)
        self._facts.filter_at_source(self._links.wanted())

    def _greeted(self, node_id: str, hello: LinkHello) -> None:
        """A member says hello: it can only speak for itself, and names an end point with its own key."""
        member = self._door.member(node_id) if self._door else None
        try:
            named = node_of(hello.endpoint)
        except ValueError:
            named = ""
        if member is None or hello.node_id != node_id or named != node_id:
            raise WireError("sender")
        if member.role is Role.MEMBER:
            self._cluster.revoke(hello.revoked)
        self._links.greeted(hello, member.role)

    def _refuse(self, envelope: Envelope) -> None:
        """Say so to whoever asks for what a hub does not do; replies and cancels are nothing to answer."""
        if not isinstance(envelope.message, Reply | RequestCancel) and not envelope.header.cause:
            self._answer(envelope, RequestFailed("unsupported", f"a hub does not serve {envelope.header.kind}"))

    def _introduction(self) -> LinkHello:
        life, topics = self._config.incarnation, self._facts.topics()
        revoked = self._door.members.revoked if self._door else ()
        return LinkHello(self.node_id, self.name, life, self.endpoint, topics, gate=self.gate, revoked=revoked)

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
            self.gate,
            self._config.cluster,
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
