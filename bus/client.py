"""The connection of an actor to the hub of its node: publish facts, send work, and await replies.

It handles envelopes, headers and replies; what other messages mean is known to the actor. Its sockets belong to the
asyncio loop that called `start`. Queues are bounded and every wait has a timeout.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

import zmq
import zmq.asyncio
from zmq.utils.monitor import recv_monitor_message

from bus.address import HUB, Address
from bus.messages import (
    ActorDown,
    ActorHello,
    Fact,
    Header,
    Message,
    PeerDown,
    Reply,
    RequestCancel,
    RequestFailed,
    Work,
    kind_of,
)
from bus.net.endpoints import HubPaths
from bus.net.sockets import connect_ipc, open_async_socket, open_socket
from bus.sequencing import Sequencer
from bus.wire import Envelope, WireError, decode, encode
from cluster.failures import FailureCode
from common.rate_limit import RateLimitedLogger

logger = logging.getLogger(__name__)

R = TypeVar("R", bound=Message)

INBOX = 1000  # envelopes that wait for the actor; when it is full we stop reading, which the hub notices
FACTS_WAITING = 500  # beyond it facts are dropped, so that work and replies still find room
HELLO_EVERY_S = 1.0
RETRY_S = 0.05


class RequestError(Exception):
    """Some work failed. `code` is for programs, `message` is a sentence for people.

    If an actor raises it while it serves work, code and message are sent to the requester as `request.failed`.
    """

    def __init__(self, code: FailureCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class _Pending(NamedTuple):
    """A request that awaits its reply."""

    to: Address
    reply: asyncio.Future[Message]


class BusClient:
    """One actor's connection to the hub of its node. `dropped` counts what was not accepted or not sent, by reason."""

    def __init__(self, run_dir: Path, node_id: str, name: str) -> None:
        self.node_id = node_id
        self.name = name
        self.dropped: Counter[str] = Counter()
        self._paths = HubPaths(run_dir)
        self._context = zmq.asyncio.Context()
        self._context.setsockopt(zmq.MAX_SOCKETS, 4096)
        self._publisher = open_socket(self._context, zmq.XPUB)
        self._subscriber = open_async_socket(self._context, zmq.SUB)
        self._dealer = open_async_socket(self._context, zmq.DEALER)
        self._inbox: asyncio.Queue[Envelope] = asyncio.Queue(INBOX)
        self._pending: dict[str, _Pending] = {}  # by the id of the work
        self._subscribed: set[bytes] = set()  # topics that the hub wants from this actor
        self._sequencer = Sequencer(self.address)
        self._limited = RateLimitedLogger(logger)
        self._running: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        """The address to which replies are sent."""
        return str(Address(self.node_id, self.name))

    async def start(self, topics: Sequence[str] = ()) -> None:
        """Connect, subscribe to `topics`, and register with the hub.

        The client itself also subscribes to lost nodes and actors: the requests that were sent there fail then.
        """
        for topic in {*topics, kind_of(PeerDown), kind_of(ActorDown)}:
            self._subscriber.subscribe(topic)
        connect_ipc(self._subscriber, self._paths.facts_out)
        connect_ipc(self._publisher, self._paths.facts_in)
        hub_events = self._dealer.get_monitor_socket(zmq.Event.HANDSHAKE_SUCCEEDED | zmq.Event.DISCONNECTED)
        connect_ipc(self._dealer, self._paths.work)
        # Not awaited: the hub may start later. Queued first, so that the hub knows us before it has to reply to us.
        self._first_hello = self._dealer.send_multipart(self._hello())
        self._running = asyncio.create_task(self._run(hub_events))

    def subscribe(self, topic: str) -> None:
        """Subscribe to one more kind, or to every kind that begins so."""
        self._subscriber.subscribe(topic)

    def has_subscribers(self, fact: type[Fact]) -> bool:
        """Return whether an actor of this node or of a linked one subscribes to facts of this class.

        False until the first connection to the hub. While the hub restarts, the old one's subscriptions count.
        """
        self._read_subscriptions()
        return kind_of(fact).encode().startswith(tuple(self._subscribed))

    async def publish(self, fact: Fact) -> None:
        """Publish a fact, if it has subscribers. Does not wait; a fact that no receiver would accept is logged."""
        if not self.has_subscribers(type(fact)):
            return
        kind = kind_of(type(fact))
        try:
            frames = self._sequencer.encode(kind, fact)
        except WireError as error:
            self.dropped["unsendable"] += 1
            self._limited.warning(kind, "%s is not published: %s", kind, error)
            return
        with suppress(zmq.Again):
            self._publisher.send_multipart(frames, zmq.DONTWAIT)

    async def send(self, to: str, message: Work | Reply, *, cause: str = "", timeout_s: float = 5.0) -> str:
        """Send to an address, which may omit this node's id, and return the message's id.

        Raises RequestError: `timeout` if the hub does not accept it in time, `unsendable` if no receiver would.
        """
        header, frames = self._encode(to, message, cause)
        await self._push(frames, timeout_s)
        return header.id

    async def request(self, to: str, work: Work, expects: type[R], timeout_s: float) -> R:
        """Send work and return the reply. Raises RequestError: the failure in the reply, `timeout` or `undeliverable`.

        A request that is cancelled or times out here is cancelled there.
        """
        header, frames = self._encode(to, work)
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._pending[header.id] = _Pending(self._full(to), future)
        try:
            async with asyncio.timeout(timeout_s):
                await self._push(frames, timeout_s)
                reply = await future
        except TimeoutError:
            await self._cancel(to, header.id)
            raise RequestError(
                FailureCode.TIMEOUT, f"{to} did not answer {header.kind} within {timeout_s:g} s"
            ) from None
        except asyncio.CancelledError:
            await asyncio.shield(self._cancel(to, header.id))
            raise
        finally:
            self._pending.pop(header.id, None)
        if isinstance(reply, RequestFailed):
            raise RequestError(reply.code, reply.message)
        if not isinstance(reply, expects):
            kind = kind_of(type(reply))
            raise RequestError(FailureCode.UNEXPECTED, f"{to} answered {kind}, which does not fit {header.kind}")
        return reply

    async def request_at_start(self, to: str, work: Work, expects: type[R], timeout_s: float) -> R:
        """Like `request`, to an actor that may still be starting: repeated while it cannot be delivered."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return await self.request(to, work, expects, timeout_s)
            except RequestError as error:
                if error.code != FailureCode.UNDELIVERABLE or time.monotonic() > deadline:
                    raise
            await asyncio.sleep(RETRY_S)

    async def deliveries(self) -> AsyncIterator[Envelope]:
        """Yield the facts that were subscribed to and the work that was sent to us, for ever, in order of arrival."""
        while True:
            yield await self._inbox.get()

    async def failed(self) -> None:
        """Wait until the client cannot read or register any more, and raise the reason. Cancel it to stop waiting."""
        assert self._running is not None, "the client has not been started"
        await asyncio.shield(self._running)

    async def close(self) -> None:
        """Stop reading and close all sockets. What was not sent yet is dropped."""
        if self._running:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        self._context.destroy(linger=0)

    # -- outgoing messages

    def _full(self, to: str) -> Address:
        return Address.parse(to, self.node_id)

    def _encode(self, to: str, message: Message, cause: str = "") -> tuple[Header, list[bytes]]:
        # Frames must be sent in the order in which they are encoded, because they are numbered here.
        address = self._full(to)
        header = self._sequencer.header(message, str(address), cause)
        try:
            return header, encode(address, header, message)
        except WireError as error:
            raise RequestError(FailureCode.UNSENDABLE, f"{header.kind} cannot be sent to {to}: {error}") from None

    async def _push(self, frames: list[bytes], timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await self._dealer.send_multipart(frames)
        except TimeoutError:
            raise RequestError(
                FailureCode.TIMEOUT, f"the hub of this node accepted no message for {timeout_s:g} s"
            ) from None

    async def _cancel(self, to: str, request: str) -> None:
        with suppress(RequestError):
            await self.send(to, RequestCancel(request), timeout_s=1.0)

    def _hello(self) -> list[bytes]:
        return self._encode(HUB, ActorHello(self.name, os.getpid()))[1]

    def _read_subscriptions(self) -> None:
        # No task reads them: a fact that is published right after a subscription came must not be lost.
        while int(self._publisher.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            message = self._publisher.recv()
            change = self._subscribed.add if message[:1] == b"\x01" else self._subscribed.discard
            change(message[1:])

    # -- what runs from `start` to `close`

    async def _run(self, hub_events: zmq.asyncio.Socket) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._read(self._subscriber))
                tasks.create_task(self._read(self._dealer))
                tasks.create_task(self._repeat_hello())
                tasks.create_task(self._watch_hub(hub_events))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _repeat_hello(self) -> None:
        while True:
            await asyncio.sleep(HELLO_EVERY_S)
            with suppress(RequestError):
                await self._push(self._hello(), HELLO_EVERY_S)

    async def _watch_hub(self, events: zmq.asyncio.Socket) -> None:
        """Register with a hub that was restarted; what was sent to the old one is never answered."""
        while True:
            event = (await recv_monitor_message(events))["event"]
            if event == zmq.Event.DISCONNECTED:
                self._fail_pending(lambda to: True, "the hub of this node", "it is started again; try again")
            else:
                with suppress(RequestError):
                    await self._push(self._hello(), HELLO_EVERY_S)

    async def _read(self, socket: zmq.asyncio.Socket) -> None:
        while True:
            frames = await socket.recv_multipart()
            try:
                envelope = decode(frames)
            except WireError as error:
                self.dropped[error.reason] += 1
                continue
            self._note_losses(envelope)
            if isinstance(envelope.message, Reply) and not envelope.is_fact:  # a fact is one that the hub's tap shows
                self._resolve(envelope, envelope.message)
            elif envelope.is_fact and self._inbox.qsize() >= FACTS_WAITING:
                self.dropped["inbox full"] += 1
            else:
                await self._inbox.put(envelope)

    def _note_losses(self, envelope: Envelope) -> None:
        match envelope.message:
            case PeerDown(node_id, reason):
                self._fail_pending(lambda to: to.node == node_id, f"node {node_id}", reason)
            case ActorDown(name, reason):
                lost = Address(envelope.node, name)
                self._fail_pending(lambda to: to == lost, f"actor {lost}", reason)

    def _resolve(self, envelope: Envelope, reply: Reply) -> None:
        """Pass a reply to its request. Only the node that was asked may reply, or our hub if it cannot deliver."""
        pending = self._pending.get(envelope.header.cause)
        if pending is None or pending.reply.done():
            return
        if envelope.node == pending.to.node or envelope.header.sender == str(self._full(HUB)):
            pending.reply.set_result(reply)
        else:
            self.dropped["foreign reply"] += 1

    def _fail_pending(self, is_lost: Callable[[Address], bool], what: str, reason: str) -> None:
        failed = RequestFailed(FailureCode.UNDELIVERABLE, f"{what} is gone: {reason}")
        for pending in self._pending.values():
            if is_lost(pending.to) and not pending.reply.done():
                pending.reply.set_result(failed)
