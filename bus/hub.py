"""The node's bus process: local actors over ipc, other nodes' hubs over one tcp port. It moves frames and reads
headers; of bodies it reads only those addressed to `hub`.

Facts of local actors go to local subscribers and to every linked hub that asked for the topic; a remote fact goes
to local actors only, so nothing loops. Work that cannot be delivered comes back as `request.failed`.
"""

from __future__ import annotations

import logging
import os
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import zmq
from zmq.utils.monitor import recv_monitor_message

from bus.client import HubPaths
from bus.mesh import Action, Close, Dial, Mesh, Publish, SayHello
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
    PeerDown,
    RequestCancel,
    RequestDone,
    RequestFailed,
    kind_of,
)
from bus.process import CANNOT_START, begin
from bus.sockets import bind_tcp, connect, open_socket
from bus.wire import Envelope, WireError, decode, decode_header, encode, new_header

logger = logging.getLogger(__name__)

TAP = b"tap."  # work passing through is repeated under this topic, for whoever inspects the bus
_STAY_HERE = frozenset(kind.encode() for kind in LOCAL_KINDS)
_LOST = (
    zmq.Event.DISCONNECTED
    | zmq.Event.CLOSED
    | zmq.Event.CONNECT_RETRIED
    | zmq.Event.HANDSHAKE_FAILED_NO_DETAIL
    | zmq.Event.HANDSHAKE_FAILED_PROTOCOL
    | zmq.Event.HANDSHAKE_FAILED_AUTH
)


class Hub:
    """One hub. `run` serves until `stopped()` is true; everything happens on the calling thread."""

    def __init__(
        self, run_dir: Path, node_id: str, name: str, incarnation: int, cluster: str, host: str, port: int
    ) -> None:
        """Bind everything. Raises OSError with a sentence where a port or the folder cannot be used."""
        self.node_id, self.name, self.incarnation = node_id, name, incarnation
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.setsockopt(zmq.MAX_SOCKETS, 8192)
        self._facts_in = open_socket(self._context, zmq.XSUB)
        self._facts_out = open_socket(self._context, zmq.XPUB)
        self._work = open_socket(self._context, zmq.ROUTER)
        self._links = open_socket(self._context, zmq.ROUTER)
        self.endpoint = bind_tcp(self._links, host, port)
        paths = HubPaths(run_dir)
        for socket, path in (
            (self._facts_in, paths.facts_in),
            (self._facts_out, paths.facts_out),
            (self._work, paths.work),
        ):
            socket.bind(path)
        self._mesh = Mesh(node_id, cluster)
        self._dealers: dict[str, zmq.Socket[bytes]] = {}
        self._monitors: dict[zmq.Socket[bytes], str] = {}
        self._actors: dict[str, tuple[bytes, int]] = {}  # name -> (routing id, process id)
        self._nodes: dict[bytes, str] = {}  # routing id on the tcp port -> node id, after its hello
        self._wanted: dict[str, tuple[bytes, ...]] = {}  # node id -> topics its actors subscribed to
        self._topics: set[bytes] = set()  # topics that our own actors subscribed to
        self._sequence = 0
        self.counters: Counter[str] = Counter()
        self._poller = zmq.Poller()
        self._sources: dict[zmq.Socket[bytes], Callable[[], None]] = {
            self._work: self._from_actor,
            self._links: self._from_hub,
            self._facts_in: self._from_publisher,
            self._facts_out: self._from_subscriber,
        }
        for source in self._sources:
            self._poller.register(source, zmq.POLLIN)

    def run(self, stopped: Callable[[], bool]) -> None:
        """Move messages until `stopped()`; asked at least every 200 ms."""
        while not stopped():
            for socket, _ in self._poller.poll(200):
                if source := self._sources.get(socket):
                    source()
                else:
                    self._from_monitor(socket)

    def close(self) -> None:
        """Say good-bye to the other hubs and close everything."""
        for peer in self._mesh.standing():
            dealer = self._dealers[peer.endpoint]
            dealer.setsockopt(zmq.LINGER, 300)
            self._tell_hub(peer.endpoint, LinkBye())
        for endpoint in list(self._dealers):
            self._hang_up(endpoint)
        for socket in self._sources:
            socket.close(0)
        self._context.term()

    # -- what comes in

    def _from_actor(self) -> None:
        routing_id, *frames = self._work.recv_multipart()
        self._count(self._work_from_actor, routing_id, frames)

    def _work_from_actor(self, routing_id: bytes, frames: list[bytes]) -> None:
        node_id, _, actor = frames[0].decode().partition("/")
        self._tap(frames)
        if node_id not in ("", self.node_id):
            self._forward(node_id, frames)
        elif actor == "hub":
            self._serve_actor(routing_id, decode(frames))
        else:
            self._deliver(actor, frames)

    def _from_hub(self) -> None:
        parts = self._links.recv_multipart(copy=False)
        source, *frames = (part.bytes for part in parts)
        self._count(self._message_from_hub, source, frames, str(parts[-1].get("Peer-Address") or ""))

    def _message_from_hub(self, source: bytes, frames: list[bytes], peer_address: str) -> None:
        if b"/" not in frames[0]:
            self._fact_from_hub(source, frames)
            return
        node_id, _, actor = frames[0].decode().partition("/")
        if actor == "hub":
            self._serve_hub(source, decode(frames), peer_address)
        elif source not in self._nodes:
            raise WireError("stranger")
        elif node_id != self.node_id:
            raise WireError("misdirected")
        else:
            self._tap(frames)
            self._deliver(actor, frames)

    def _fact_from_hub(self, source: bytes, frames: list[bytes]) -> None:
        if source not in self._nodes:
            raise WireError("stranger")
        decode_header(frames)
        self._facts_out.send_multipart(frames)

    def _from_publisher(self) -> None:
        frames = self._facts_in.recv_multipart()
        self._facts_out.send_multipart(frames)
        if frames[0] in _STAY_HERE:
            return
        for peer in self._mesh.standing():
            if any(frames[0].startswith(topic) for topic in self._wanted.get(peer.node_id, ())):
                self._push(peer.endpoint, frames, "fact dropped")

    def _from_subscriber(self) -> None:
        message = self._facts_out.recv()
        self._facts_in.send(message)  # publishers filter at the source
        topic = message[1:]
        self._topics.add(topic) if message[:1] == b"\x01" else self._topics.discard(topic)
        for peer in self._mesh.standing():
            self._tell_hub(peer.endpoint, LinkSubscribe(self._subscriptions()))

    def _from_monitor(self, monitor: zmq.Socket[bytes]) -> None:
        endpoint = self._monitors.get(monitor)
        if endpoint is None:
            return
        event = recv_monitor_message(monitor)["event"]
        if event == zmq.Event.HANDSHAKE_SUCCEEDED:
            self._act(self._mesh.connected(endpoint))
        elif event & _LOST:
            self._act(self._mesh.disconnected(endpoint, "the connection broke"))

    def _count(self, serve: Callable[..., None], *arguments: object) -> None:
        """Serve frames from outside; what is not ours is counted and dropped."""
        try:
            serve(*arguments)
        except (WireError, UnicodeDecodeError, IndexError) as error:
            self.counters[f"dropped: {getattr(error, 'reason', 'frames')}"] += 1

    # -- work for the hub itself

    def _serve_actor(self, routing_id: bytes, envelope: Envelope) -> None:
        message = envelope.message
        if isinstance(message, ActorHello):
            self._meet(routing_id, message)
        elif isinstance(message, HubDescribe):
            self._answer(envelope, self._state())
        elif isinstance(message, PeerDial):
            self._act(self._mesh.dial(message.endpoint))
            self._answer(envelope, RequestDone())
        elif not isinstance(message, RequestCancel):
            self._answer(envelope, RequestFailed("unsupported", f"a hub does not serve {envelope.header.kind}"))

    def _meet(self, routing_id: bytes, hello: ActorHello) -> None:
        known = self._actors.get(hello.name)
        self._actors[hello.name] = (routing_id, hello.pid)
        if known is None or known[1] != hello.pid:
            self._announce(ActorUp(hello.name, hello.pid))

    def _serve_hub(self, source: bytes, envelope: Envelope, peer_address: str) -> None:
        message = envelope.message
        if isinstance(message, LinkHello):
            self._greeted(source, message, peer_address)
        elif source not in self._nodes:
            raise WireError("stranger")
        elif isinstance(message, LinkSubscribe):
            self._wanted[self._nodes[source]] = _topics(message.subscriptions)
        elif isinstance(message, LinkBye):
            self._act(self._mesh.left(self._nodes[source]))
        elif isinstance(message, HubDescribe):
            self._answer(envelope, self._state())

    def _greeted(self, source: bytes, hello: LinkHello, peer_address: str) -> None:
        endpoint = hello.endpoint.replace("0.0.0.0", peer_address) if peer_address else hello.endpoint  # noqa: S104
        self._nodes[source] = hello.node_id
        self._wanted[hello.node_id] = _topics(hello.subscriptions)
        fields = {**{f: getattr(hello, f) for f in hello.__struct_fields__}, "endpoint": endpoint}
        self._act(self._mesh.hello(LinkHello(**fields)))

    def _state(self) -> HubState:
        actors = tuple(HubActor(name, pid) for name, (_, pid) in sorted(self._actors.items()))
        own = HubActor("hub", os.getpid())
        return HubState(
            self.node_id,
            self.name,
            self.endpoint,
            (own, *actors),
            self._mesh.standing(),
            self._subscriptions(),
            dict(self.counters),
        )

    # -- what goes out

    def _deliver(self, actor: str, frames: Sequence[bytes]) -> None:
        routing_id, _ = self._actors.get(actor, (b"", 0))
        try:
            if not routing_id:
                raise zmq.ZMQError(zmq.EHOSTUNREACH)
            self._work.send_multipart([routing_id, *frames], zmq.DONTWAIT)
        except zmq.ZMQError as error:
            if error.errno == zmq.EHOSTUNREACH:
                self._actors.pop(actor, None)
            self._undeliverable(frames, f"no actor {actor!r} answers on node {self.name}")

    def _forward(self, node_id: str, frames: Sequence[bytes]) -> None:
        endpoint = self._mesh.endpoint_of(node_id)
        if endpoint is None or not self._push(endpoint, frames, "work dropped"):
            self._undeliverable(frames, f"node {node_id} is not linked to {self.name}")

    def _push(self, endpoint: str, frames: Sequence[bytes], count_as: str) -> bool:
        try:
            self._dealers[endpoint].send_multipart(frames, zmq.DONTWAIT)
        except zmq.Again:
            self.counters[count_as] += 1
            return False
        return True

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

    def _tell_hub(self, endpoint: str, message: Message) -> None:
        self._push(endpoint, encode("/hub", new_header(message, f"{self.node_id}/hub"), message), "work dropped")

    def _tap(self, frames: Sequence[bytes]) -> None:
        if any(TAP.startswith(topic) or topic.startswith(TAP) for topic in self._topics):
            kind = decode_header(frames).kind.encode()
            self._facts_out.send_multipart([TAP + kind, *frames[1:3]])

    # -- links

    def _act(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Dial(endpoint):
                    self._dial(endpoint)
                case Close(endpoint):
                    self._hang_up(endpoint)
                case SayHello(endpoint, heard):
                    self._introduce(endpoint, heard)
                case Publish(fact):
                    self._announce(fact)

    def _dial(self, endpoint: str) -> None:
        dealer = open_socket(self._context, zmq.DEALER)
        monitor = dealer.get_monitor_socket(zmq.Event.HANDSHAKE_SUCCEEDED | _LOST)
        self._dealers[endpoint], self._monitors[monitor] = dealer, endpoint
        self._poller.register(monitor, zmq.POLLIN)
        try:
            connect(dealer, endpoint)
        except ValueError as error:
            logger.warning("%s", error)
            self._act(self._mesh.disconnected(endpoint, "it is no end point"))

    def _hang_up(self, endpoint: str) -> None:
        dealer = self._dealers.pop(endpoint, None)
        if dealer is None:
            return
        for monitor in [m for m, e in self._monitors.items() if e == endpoint]:
            del self._monitors[monitor]
            self._poller.unregister(monitor)
        dealer.disable_monitor()
        dealer.close()

    def _introduce(self, endpoint: str, heard: LinkHello | None) -> None:
        hello = LinkHello(
            self.node_id,
            self.name,
            self.incarnation,
            self.endpoint,
            self._mesh.cluster,
            self._subscriptions(),
            dialled=endpoint,
            answers=heard.dialled if heard else "",
            heard=heard is not None,
        )
        self._tell_hub(endpoint, hello)

    def _announce(self, fact: Message) -> None:
        if isinstance(fact, PeerDown):
            self._wanted.pop(fact.node_id, None)
            self._nodes = {source: node for source, node in self._nodes.items() if node != fact.node_id}
        self._sequence += 1
        header = new_header(fact, f"{self.node_id}/hub", sequence=self._sequence)
        self._facts_out.send_multipart(encode(header.kind, header, fact))

    def _subscriptions(self) -> tuple[str, ...]:
        return tuple(sorted(topic.decode(errors="replace") for topic in self._topics))


def _topics(subscriptions: Sequence[str]) -> tuple[bytes, ...]:
    return tuple(topic.encode() for topic in subscriptions)


def main() -> None:
    """The hub's process: `python -m bus.hub`, started by a node's supervisor."""
    config = begin("hub")
    stopping: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _frame: stopping.append(number))
    try:
        hub = Hub(
            config.run_path,
            config.node_id,
            config.name,
            config.incarnation,
            config.cluster,
            config.host,
            config.bus_port,
        )
    except OSError as error:
        logger.error("%s", error)
        raise SystemExit(CANNOT_START) from None
    try:
        hub.run(lambda: bool(stopping))
    finally:
        hub.close()


if __name__ == "__main__":
    main()
