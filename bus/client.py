"""An actor's line to its own hub: publish facts, send work, await replies. Knows frames, not what they mean.

Sockets belong to the asyncio loop that called `start`. One reader a socket, queues bounded, every wait has a
deadline.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import zmq
import zmq.asyncio
from zmq.utils.monitor import recv_monitor_message

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
from bus.net.sockets import connect_ipc, open_async_socket
from bus.sequencing import Sequencer
from bus.wire import Envelope, WireError, decode, encode
from cluster.failures import FailureCode
from common.rate_limit import RateLimitedLogger

logger = logging.getLogger(__name__)

R = TypeVar("R", bound=Message)

INBOX = 1000  # deliveries that wait for the actor; beyond it we stop reading and back-pressure the hub
FACTS_WAITING = 500  # beyond it facts are dropped, so that work and replies still get in
HELLO_EVERY_S = 1.0
ASK_AGAIN_S = 0.05


class RequestError(Exception):
    """Some work failed; `code` is for programs, `message` a sentence for people. Raised by `BusClient.request`.

    An actor that raises it while serving work has it sent to the asker as `request.failed`.
    """

    def __init__(self, code: FailureCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class HubPaths:
    """Where a hub's ipc end points lie inside a node's run folder (mode 0700)."""

    def __init__(self, run_dir: Path) -> None:
        self.facts_in = f"ipc://{run_dir}/facts-in"
        self.facts_out = f"ipc://{run_dir}/facts-out"
        self.work = f"ipc://{run_dir}/work"


class BusClient:
    """One actor's connection to the hub of its node. `node_id/name` is its address."""

    def __init__(self, run_dir: Path, node_id: str, name: str) -> None:
        self.node_id = node_id
        self.name = name
        self.dropped: dict[str, int] = {}
        self._paths = HubPaths(run_dir)
        self._context = zmq.asyncio.Context()
        self._context.setsockopt(zmq.MAX_SOCKETS, 4096)
        self._publisher = open_async_socket(self._context, zmq.PUB)
        self._subscriber = open_async_socket(self._context, zmq.SUB)
        self._dealer = open_async_socket(self._context, zmq.DEALER)
        self._inbox: asyncio.Queue[Envelope] = asyncio.Queue(INBOX)
        self._waiting: dict[str, tuple[str, asyncio.Future[Message]]] = {}
        self._numbering = Sequencer(self.address)
        self._lines = RateLimitedLogger(logger)
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def address(self) -> str:
        """Where replies find this actor."""
        return f"{self.node_id}/{self.name}"

    async def start(self, topics: Sequence[str] = ()) -> None:
        """Connect and say hello. Losing a node or an actor is always listened for: it ends the requests sent there."""
        for topic in {*topics, kind_of(PeerDown), kind_of(ActorDown)}:
            self._subscriber.subscribe(topic)
        connect_ipc(self._subscriber, self._paths.facts_out)
        connect_ipc(self._publisher, self._paths.facts_in)
        hub_events = self._dealer.get_monitor_socket(zmq.Event.HANDSHAKE_SUCCEEDED | zmq.Event.DISCONNECTED)
        connect_ipc(self._dealer, self._paths.work)
        # Not awaited: the hub may come later. Queued first, so that the hub knows us before it has to answer us.
        self._first_hello = self._dealer.send_multipart(self._hello())
        self._tasks = [
            asyncio.create_task(self._read(self._subscriber)),
            asyncio.create_task(self._read(self._dealer)),
            asyncio.create_task(self._say_hello()),
            asyncio.create_task(self._watch_hub(hub_events)),
        ]

    def subscribe(self, topic: str) -> None:
        """Hear one more kind (or every kind that begins so)."""
        self._subscriber.subscribe(topic)

    def has_subscribers(self, fact: type[Fact]) -> bool:
        """Return whether anyone may have subscribed to facts of this kind."""
        return True

    async def publish(self, fact: Fact) -> None:
        """Tell whoever listens. Never waits for anybody; a fact that nobody could read is dropped with a warning."""
        kind = kind_of(type(fact))
        try:
            frames = encode(kind, self._numbering.header(fact, kind), fact)
        except WireError as error:
            self._drop("unsendable")
            self._lines.warning(kind, "%s is not published: %s", kind, error)
            return
        with suppress(zmq.Again):
            await self._publisher.send_multipart(frames, zmq.DONTWAIT)

    async def send(self, to: str, message: Work | Reply, *, cause: str = "", deadline_s: float = 5.0) -> str:
        """Send to an address and return the message's id.

        Raises RequestError where the hub takes nothing, and `unsendable` for what no receiver could read.
        """
        header, frames = self._written(to, message, cause)
        await self._send(frames, deadline_s)
        return header.id

    async def request(self, to: str, work: Work, expects: type[R], deadline_s: float) -> R:
        """Send work and await its reply. Raises RequestError: what the other side said, `timeout` or `undeliverable`.

        A request that is cancelled or times out here is cancelled there.
        """
        header, frames = self._written(to, work)
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._waiting[header.id] = (self._full(to), future)
        try:
            async with asyncio.timeout(deadline_s):
                await self._send(frames, deadline_s)
                reply = await future
        except TimeoutError:
            await self._cancel(to, header.id)
            raise RequestError(
                FailureCode.TIMEOUT, f"{to} did not answer {header.kind} within {deadline_s:g} s"
            ) from None
        except asyncio.CancelledError:
            await asyncio.shield(self._cancel(to, header.id))
            raise
        finally:
            self._waiting.pop(header.id, None)
        return _expected(reply, expects, to)

    async def request_at_start(self, to: str, work: Work, expects: type[R], deadline_s: float) -> R:
        """As `request`, to an actor that may be starting just now: asked again while it cannot be delivered to."""
        deadline = time.monotonic() + deadline_s
        while True:
            try:
                return await self.request(to, work, expects, deadline_s)
            except RequestError as error:
                if error.code != FailureCode.UNDELIVERABLE or time.monotonic() > deadline:
                    raise
            await asyncio.sleep(ASK_AGAIN_S)

    async def deliveries(self) -> AsyncIterator[Envelope]:
        """Facts that we subscribed to and work that was sent to us, for ever, in order of arrival."""
        while True:
            yield await self._inbox.get()

    async def close(self) -> None:
        """Stop reading and close every socket; what was not sent is dropped."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._context.destroy(linger=0)

    async def _send(self, frames: list[bytes], deadline_s: float) -> None:
        try:
            async with asyncio.timeout(deadline_s):
                await self._dealer.send_multipart(frames)
        except TimeoutError:
            raise RequestError(FailureCode.TIMEOUT, f"the hub of this node took nothing for {deadline_s:g} s") from None

    async def _cancel(self, to: str, request: str) -> None:
        with suppress(RequestError):
            await self.send(to, RequestCancel(request), deadline_s=1.0)

    def _written(self, to: str, message: Message, cause: str = "") -> tuple[Header, list[bytes]]:
        """The next message to an address. To be sent before anything else is written: its number says so."""
        header = self._numbering.header(message, self._full(to), cause)
        try:
            return header, encode(self._full(to), header, message)
        except WireError as error:
            raise RequestError(FailureCode.UNSENDABLE, f"{header.kind} cannot be sent to {to}: {error}") from None

    def _full(self, to: str) -> str:
        return to if "/" in to else f"{self.node_id}/{to}"

    def _hello(self) -> list[bytes]:
        return self._written("hub", ActorHello(self.name, os.getpid()))[1]

    async def _say_hello(self) -> None:
        while True:
            await asyncio.sleep(HELLO_EVERY_S)
            with suppress(RequestError):
                await self._send(self._hello(), HELLO_EVERY_S)

    async def _watch_hub(self, events: zmq.asyncio.Socket) -> None:
        """A hub that is started again knows nobody, and what went through the old one is never answered."""
        while True:
            event = (await recv_monitor_message(events))["event"]
            if event == zmq.Event.DISCONNECTED:
                self._give_up(lambda to: True, "the hub of this node", "it is started again; try again")
            else:
                with suppress(RequestError):
                    await self._send(self._hello(), HELLO_EVERY_S)

    async def _read(self, socket: zmq.asyncio.Socket) -> None:
        while True:
            frames = await socket.recv_multipart()
            try:
                envelope = decode(frames)
            except WireError as error:
                self._drop(error.reason)
                continue
            if self._answers(envelope):
                continue
            if "/" not in envelope.to and self._inbox.qsize() >= FACTS_WAITING:
                self._drop("inbox full")
                continue
            await self._inbox.put(envelope)

    def _drop(self, reason: str) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + 1

    def _answers(self, envelope: Envelope) -> bool:
        """Give a reply to the request that waits for it; tell whether the envelope is thereby done with."""
        message = envelope.message
        if isinstance(message, PeerDown):
            self._give_up(lambda to: to.startswith(f"{message.node_id}/"), f"node {message.node_id}", message.reason)
        elif isinstance(message, ActorDown):
            address = f"{envelope.node}/{message.name}"
            self._give_up(lambda to: to == address, f"actor {address}", message.reason)
        if not isinstance(message, Reply) or "/" not in envelope.to:  # one that the hub's tap shows is not for us
            return False
        to, future = self._waiting.get(envelope.header.cause, ("", None))
        if future is not None and not self._may_answer(to, envelope):
            self._drop("foreign reply")
        elif future is not None and not future.done():
            future.set_result(message)
        return True

    def _may_answer(self, to: str, envelope: Envelope) -> bool:
        """The node that was asked may, and our own hub, which knows what cannot be delivered."""
        return envelope.node == to.partition("/")[0] or envelope.header.sender == self._full("hub")

    def _give_up(self, lost: Callable[[str], bool], who: str, reason: str) -> None:
        for to, future in self._waiting.values():
            if lost(to) and not future.done():
                future.set_result(RequestFailed(FailureCode.UNDELIVERABLE, f"{who} is gone: {reason}"))


def _expected(reply: Message, expects: type[R], to: str) -> R:
    if isinstance(reply, RequestFailed):
        raise RequestError(reply.code, reply.message)
    if not isinstance(reply, expects):
        raise RequestError(
            FailureCode.UNEXPECTED, f"{to} answered {kind_of(type(reply))}, which does not fit the question"
        )
    return reply
