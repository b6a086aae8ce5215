"""The bus process of a node: passes messages between its actors, over ipc, and the hubs of other nodes, over tcp.

Facts of the node's own actors go to its subscribers and to every linked hub that subscribed to the topic; a fact from
another node goes to the node's own subscribers only, so nothing loops. Work that cannot be delivered comes back as
`request.failed`. A hub reads headers; it decodes the bodies only of messages that are addressed to itself.
"""

from __future__ import annotations

import logging
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import zmq

from bus.actor_registry import ActorRegistry
from bus.address import HUB, Address
from bus.hub_context import HubContext
from bus.hub_service import HubService
from bus.messages import LOCAL_KINDS, Header, LocalFact, Reply, RequestCancel, RequestFailed, kind_of
from bus.net.endpoints import HubPaths
from bus.net.sockets import bind_ipc, open_socket
from bus.peering.authenticator import Authenticator
from bus.peering.inbound_policy import Forbidden
from bus.peering.peer_network import PeerNetwork, Standalone
from bus.peering.peering import Peering
from bus.process import CANNOT_START, begin, bound_memory
from bus.pubsub import PubSub
from bus.reactor import Handler, Reactor
from bus.sequencing import Sequencer
from bus.wire import WireError, decode, decode_header, decode_to
from cluster.failures import FailureCode
from common.config import NodeConfig
from common.rate_limit import RateLimitedLogger

logger = logging.getLogger(__name__)
limited = RateLimitedLogger(logger)

# Bytes of address space: at rest a hub uses a quarter of it. Without a limit, messages of a member could exhaust the
# machine's memory.
MAX_MEMORY = 1 << 30
POLL_MS = 200


class Hub:
    """One hub. Everything happens on the thread that calls `run`."""

    def __init__(self, config: NodeConfig) -> None:
        """Bind all sockets. Raises OSError with a sentence if a port, a key or the folder cannot be used."""
        self._config = config
        authenticator = Authenticator.of(config)
        self._context = HubContext(
            config, zmq.Context(), Reactor(), Sequencer(f"{config.node_id}/{HUB}"), Counter(), self._publish
        )
        self._context.zmq_context.setsockopt(zmq.MAX_SOCKETS, 8192)
        self._registry = ActorRegistry()
        with ExitStack() as undo:
            undo.callback(self._context.zmq_context.destroy, 0)
            self._work = open_socket(self._context.zmq_context, zmq.ROUTER)
            bind_ipc(self._work, HubPaths(config.run_path).work)
            self._network: PeerNetwork = (
                Peering(self._context, authenticator, self._from_peer) if authenticator else Standalone()
            )
            undo.callback(self._network.close)
            self._facts = PubSub(self._context, self._network)
            undo.pop_all()
        self._service = HubService(self._context, self._registry, self._facts, self._network, self._is_connected)
        self._context.reactor.register(self._work, self._from_actor)

    @property
    def node_id(self) -> str:
        """The id of the hub's node."""
        return self._config.node_id

    @property
    def endpoint(self) -> str:
        """The bus port, with the node's key; empty if the node stands alone."""
        return self._network.endpoint

    @property
    def join_endpoint(self) -> str:
        """The join port; empty if there is none."""
        return self._network.join_endpoint

    def run(self, stopped: Callable[[], bool]) -> None:
        """Pass messages until `stopped()` returns true, which is checked at least every 200 ms."""
        while not stopped():
            for handler in self._context.reactor.poll(POLL_MS):
                self._call(handler)
            self._network.maintain(time.monotonic())

    def close(self) -> None:
        """Send `link.bye` to the linked hubs and close all sockets."""
        self._network.close()
        self._facts.close()
        self._work.close(0)
        self._context.zmq_context.term()

    def _call(self, handler: Handler) -> None:
        """Call the handler of a socket. A message that is not valid is counted and dropped."""
        try:
            handler()
        except WireError as error:
            self._context.counters[f"dropped: {error.reason}"] += 1
            limited.warning(error.reason, "dropped an invalid message: %s", error)
            if isinstance(error, Forbidden):
                self._refuse(error.header, FailureCode.FORBIDDEN, error.sentence)

    # -- incoming messages

    def _from_actor(self) -> None:
        routing_id, *frames = self._work.recv_multipart()
        header = decode_header(frames)
        to = Address.parse(str(decode_to(frames)), self.node_id)
        frames[0] = str(to).encode()  # an actor recognizes work by the whole address
        self._registry.touch(Address.parse(header.sender).actor, routing_id, time.monotonic())
        self._facts.tap(frames)
        if to.node != self.node_id:
            self._forward(to, frames)
        elif to.actor == HUB:
            self._reply(header, self._service.serve_actor(decode(frames), routing_id))
        else:
            self._deliver(to, frames)

    def _from_peer(self, node_id: str, header: Header, frames: list[bytes]) -> None:
        """Pass on a message of another node, which its link's policy allowed. Raises WireError."""
        to = decode_to(frames)
        if isinstance(to, str):
            if to != header.kind or to in LOCAL_KINDS:
                raise WireError("misdirected")
            self._facts.send(frames)
        elif to.node not in ("", self.node_id):
            raise WireError("misdirected")
        elif to.actor == HUB:
            self._reply(header, self._service.serve_hub(node_id, decode(frames)))
            self._facts.update_filter()
        else:
            self._facts.tap(frames)
            self._deliver(to, frames)

    # -- outgoing messages

    def _deliver(self, to: Address, frames: Sequence[bytes]) -> None:
        """Send work to an actor of this node, or return it to its sender."""
        try:
            if (routing_id := self._registry.routing_id(to.actor)) is None:
                raise zmq.ZMQError(zmq.EHOSTUNREACH)
            self._work.send_multipart([routing_id, *frames], zmq.DONTWAIT)
        except zmq.Again:
            why = f"{to.actor} on node {self._config.name} has too much work waiting; try again soon"
            self._return(frames, why, FailureCode.BUSY)
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self._registry.forget(to.actor)
            why = f"no actor {to.actor!r} answers on node {self._config.name}; if it ended, it is being started again"
            self._return(frames, f"{why}: try again in a moment")

    def _is_connected(self, routing_id: bytes) -> bool:
        """Return whether a connection stands. Only sending shows that: a cancel of no request changes nothing."""
        frames = self._context.sequencer.encode(Address(self.node_id, ""), RequestCancel(""))
        try:
            self._work.send_multipart([routing_id, *frames], zmq.DONTWAIT)
        except zmq.ZMQError as error:
            return error.errno != zmq.EHOSTUNREACH
        return True

    def _forward(self, to: Address, frames: Sequence[bytes]) -> None:
        """Send work to another node, or return it to its sender."""
        if not self._network.forward(to.node, frames):
            name = self._network.name_of(to.node)
            self._return(frames, f"node {name} is not linked to {self._config.name} now; try again in a moment")

    def _return(self, frames: Sequence[bytes], why: str, code: FailureCode = FailureCode.UNDELIVERABLE) -> None:
        self._context.counters["undeliverable"] += 1
        header = decode_header(frames)
        if header.kind != kind_of(RequestCancel):
            self._refuse(header, code, why)

    def _refuse(self, header: Header, code: FailureCode, why: str) -> None:
        """Reply to some work with the reason why it failed.

        A reply is never answered, or two hubs might do so for ever.
        """
        if not header.cause:
            self._reply(header, RequestFailed(code, why))

    def _reply(self, request: Header, reply: Reply | None) -> None:
        if reply is None:
            return
        to = Address.parse(request.sender, self.node_id)
        frames = self._context.sequencer.encode(to, reply, request.id)
        if to.node == self.node_id:
            self._deliver(to, frames)
        else:
            self._forward(to, frames)

    def _publish(self, fact: LocalFact) -> None:
        self._facts.publish(fact)


def main() -> None:
    """Run the hub's process, `python -m bus.hub`, which a node's supervisor starts."""
    config = begin("hub")
    bound_memory(MAX_MEMORY)
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
