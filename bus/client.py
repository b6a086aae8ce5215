"""The connection of an actor to the hub of its node: publish facts, send work, and await replies.

It handles envelopes, headers and replies; what other messages mean is known to the actor. Its sockets belong to the
asyncio loop that called `start`. Queues are bounded and every wait has a timeout.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import zmq
import zmq.asyncio
from zmq.utils.monitor import recv_monitor_message

from bus.address import HUB, Address
from bus.fact_publisher import FactPublisher
from bus.link_watch import LinkEvent, LinkWatch
from bus.messages import (
    ActorDown,
    ActorHello,
    Fact,
    Header,
    HubDescribe,
    HubState,
    Message,
    PeerDown,
    PeerUp,
    Reply,
    RequestCancel,
    RequestCheck,
    RequestFailed,
    Work,
    kind_of,
)
from bus.net.endpoints import HubPaths
from bus.net.sockets import connect_ipc, open_async_socket
from bus.pending_requests import PendingRequests, RequestError
from bus.sequencing import Sequencer
from bus.wire import Envelope, WireError, decode, encode, new_header
from cluster.failures import FailureCode

__all__ = ["BusClient", "RequestError"]

R = TypeVar("R", bound=Message)

INBOX = 1000  # envelopes that wait for the actor; when it is full we stop reading, which the hub notices
FACTS_WAITING = 500  # beyond it facts are dropped, so that work and replies still find room
HELLO_EVERY_S = 1.0
COMPARE_LINKS_EVERY_S = 2.0
CHECK_EVERY_S = 2.0  # whether a request is still being served
RETRY_S = 0.05


class BusClient:
    """One actor's connection to the hub of its node. `dropped` counts what was not accepted or not sent, by reason."""

    def __init__(self, run_dir: Path, node_id: str, name: str) -> None:
        self.node_id = node_id
        self.name = name
        self.dropped: Counter[str] = Counter()
        self._paths = HubPaths(run_dir)
        self._context = zmq.asyncio.Context()
        self._context.setsockopt(zmq.MAX_SOCKETS, 4096)
        self._subscriber = open_async_socket(self._context, zmq.SUB)
        self._dealer = open_async_socket(self._context, zmq.DEALER)
        self._inbox: asyncio.Queue[Envelope] = asyncio.Queue(INBOX)
        self._pending = PendingRequests(node_id)
        self._links: LinkWatch | None = None  # if the actor is told which nodes are linked
        self._hub_is_new = asyncio.Event()
        self._sequencer = Sequencer(self.address)
        self._publisher = FactPublisher(self._context, self._sequencer, self.dropped)
        self._running: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        """The address to which replies are sent."""
        return str(Address(self.node_id, self.name))

    async def start(self, topics: Sequence[str] = (), *, follow_links: bool = False) -> None:
        """Connect, subscribe to `topics`, and register with the hub.

        The client itself also subscribes to lost nodes and actors: the requests that were sent there fail then. With
        `follow_links`, every link that there is or that ends is delivered as `PeerUp` or `PeerDown`, also one of before
        the start, one that lost its fact, and those that ended with the hub.
        """
        for topic in {*topics, kind_of(PeerDown), kind_of(ActorDown)}:
            self._subscriber.subscribe(topic)
        if follow_links:
            self._links = LinkWatch()
            self._subscriber.subscribe(kind_of(PeerUp))
        connect_ipc(self._subscriber, self._paths.facts_out)
        self._publisher.connect(self._paths.facts_in)
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
        return self._publisher.has_subscribers(fact)

    async def publish(self, fact: Fact) -> None:
        """Publish a fact, if it has subscribers. Does not wait; a fact that no receiver would accept is logged."""
        self._publisher.publish(fact)

    async def send(self, to: str, message: Work | Reply, *, cause: str = "", timeout_s: float = 5.0) -> str:
        """Send to an address, which may omit this node's id, and return the message's id.

        Raises RequestError: `timeout` if the hub does not accept it in time, `unsendable` if no receiver would.
        """
        header, frames = self._encode(to, message, cause)
        await self._push(frames, timeout_s)
        return header.id

    async def request(self, to: str, work: Work, expects: type[R], timeout_s: float) -> R:
        """Send work and return the reply.

        Raises RequestError: the failure in the reply, `timeout`, `undeliverable`, or `not_served` if the actor does not
        know of the request any more. A request that is cancelled or times out here is cancelled there.
        """
        header, frames = self._encode(to, work)
        called, kind = self._called(to), header.kind
        reply_came = self._pending.add(header.id, self._full(to))
        try:
            async with asyncio.timeout(timeout_s):
                await self._push(frames, timeout_s)
                reply = await self._reply(to, header.id, reply_came)
        except TimeoutError:
            await self._cancel(to, header.id)
            raise RequestError(FailureCode.TIMEOUT, f"{called} did not answer {kind} within {timeout_s:g} s") from None
        except asyncio.CancelledError:
            await asyncio.shield(self._cancel(to, header.id))
            raise
        finally:
            self._pending.remove(header.id)
        if isinstance(reply, RequestFailed):
            raise RequestError(reply.code, reply.message)
        if not isinstance(reply, expects):
            unfit = f"{kind_of(type(reply))}, which does not fit {kind}"
            raise RequestError(FailureCode.UNEXPECTED, f"{called} answered {unfit}")
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

    def _called(self, to: str) -> str:
        """Return what people call an address."""
        address = self._full(to)
        if address.node == self.node_id:
            return address.actor
        return f"{address.actor} on node {self._links.name_of(address.node) if self._links else address.node}"

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

    async def _reply(self, to: str, request: str, came: asyncio.Future[Message]) -> Message:
        """Wait for a reply, and ask the actor every two seconds whether it still serves the request."""
        while not came.done():
            await asyncio.wait([came], timeout=CHECK_EVERY_S)
            if not came.done() and self._full(to).actor != HUB:
                header, frames = self._encode(to, RequestCheck(request))
                self._pending.check(request, header.id)
                with suppress(RequestError):
                    await self._push(frames, CHECK_EVERY_S)
        return came.result()

    async def _cancel(self, to: str, request: str) -> None:
        with suppress(RequestError):
            await self.send(to, RequestCancel(request), timeout_s=1.0)

    def _hello(self) -> list[bytes]:
        return self._encode(HUB, ActorHello(self.name, os.getpid()))[1]

    # -- what runs from `start` to `close`

    async def _run(self, hub_events: zmq.asyncio.Socket) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._read(self._subscriber))
                tasks.create_task(self._read(self._dealer))
                tasks.create_task(self._repeat_hello())
                tasks.create_task(self._watch_hub(hub_events))
                if self._links:
                    tasks.create_task(self._compare_links(self._links))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _repeat_hello(self) -> None:
        while True:
            await asyncio.sleep(HELLO_EVERY_S)
            with suppress(RequestError):
                await self._push(self._hello(), HELLO_EVERY_S)

    async def _watch_hub(self, events: zmq.asyncio.Socket) -> None:
        """Register with a hub that was started again; what was sent to the old one is never answered."""
        was_lost = False
        while True:
            event = (await recv_monitor_message(events))["event"]
            if event == zmq.Event.DISCONNECTED:
                was_lost = True
                self._pending.fail(lambda to: True, "the hub of this node", "it is started again; try again")
                continue
            with suppress(RequestError):
                await self._push(self._hello(), HELLO_EVERY_S)
            if self._links and was_lost:  # not before: what handlers publish and send now reaches the new hub
                await self._tell(self._links.hub_lost())
            self._hub_is_new.set()

    async def _compare_links(self, links: LinkWatch) -> None:
        """Compare with the hub's list of links whenever the hub is new, and every two seconds: facts may be lost."""
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._hub_is_new.wait(), COMPARE_LINKS_EVERY_S)
            self._hub_is_new.clear()
            links.asked()
            with suppress(RequestError):  # a hub that is being started again replies the next time
                state = await self.request(HUB, HubDescribe(), HubState, COMPARE_LINKS_EVERY_S)
                await self._tell(links.compare(state.peers))

    async def _tell(self, events: Iterable[LinkEvent]) -> None:
        """Deliver events about links. Unlike other facts they always wait for room, or the actor would miss one."""
        for event in events:
            self._pending.note_loss(event, self.node_id)
            header = new_header(event, str(self._full(HUB)))
            await self._inbox.put(Envelope(header.kind, header, event))

    async def _read(self, socket: zmq.asyncio.Socket) -> None:
        while True:
            frames = await socket.recv_multipart()
            try:
                envelope = decode(frames)
            except WireError as error:
                self.dropped[error.reason] += 1
                continue
            await self._take(envelope)

    async def _take(self, envelope: Envelope) -> None:
        message = envelope.message
        if isinstance(message, Reply) and not envelope.is_fact:  # a fact is one that the hub's tap shows
            if not self._pending.resolve(envelope, message):
                self.dropped["foreign reply"] += 1
            return
        self._pending.note_loss(message, envelope.node)
        if self._links and isinstance(message, LinkEvent):
            await self._tell(self._links.heard(message))
        elif envelope.is_fact and self._inbox.qsize() >= FACTS_WAITING:
            self.dropped["inbox full"] += 1
        else:
            await self._inbox.put(envelope)
