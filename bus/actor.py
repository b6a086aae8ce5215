"""The actor loop: dispatch by message class, timers, and the failure policy, which is written only here.

An exception while an actor serves work becomes `request.failed` to the requester. Anywhere else (a fact, a timer, the
start, the connection to the hub) it ends the process, and the supervisor restarts it.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import signal
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, TypeVar

from bus.client import BusClient, RequestError
from bus.messages import (
    Fact,
    Log,
    Message,
    PeerDown,
    PeerUp,
    Reply,
    RequestCancel,
    RequestCheck,
    RequestFailed,
    RequestWorking,
    Work,
    kind_of,
)
from bus.wire import Envelope
from cluster.failures import FailureCode
from common.rate_limit import RateLimitedLogger

logger = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Awaitable[Any]])
MAX_WORK = 256  # served at one time; further work is refused as `busy`


def on(*messages: type[Message]) -> Callable[[F], F]:
    """Mark a method `async (self, message, envelope)` as the handler of these messages.

    For work it returns the reply, or None to send none. The actor subscribes to the facts that have handlers. Those of
    `PeerUp` and `PeerDown` are also called for links that no fact told: see `BusClient.start`.
    """

    def mark(method: F) -> F:
        method.__dict__["serves"] = messages
        return method

    return mark


def every(seconds: float) -> Callable[[F], F]:
    """Mark a method `async (self)` to be called again and again, with this pause between two calls."""

    def mark(method: F) -> F:
        method.__dict__["every"] = seconds
        return method

    return mark


class Actor:
    """One process with one job. Subclasses have a `name` and marked methods; their state needs no locks.

    Facts are handled one after the other, in order; each piece of work in a task of its own.
    """

    name: ClassVar[str]
    handlers: ClassVar[dict[type[Message], str]] = {}

    def __init_subclass__(cls) -> None:
        cls.handlers = {**cls.handlers}
        for attribute, method in vars(cls).items():
            for message in getattr(method, "serves", ()):
                cls.handlers[message] = attribute

    def __init__(self, bus: BusClient) -> None:
        self.bus = bus
        self._serving: dict[tuple[str, str], asyncio.Task[None]] = {}  # by sender and id of the work
        self._limited = RateLimitedLogger(logger)
        self._stop = asyncio.Event()

    async def started(self) -> None:
        """Prepare, before the first message is handled. An exception ends the process."""

    async def stopping(self) -> None:
        """Clean up, after the last message was handled and while the bus still works."""

    def stop(self) -> None:
        """End the loop soon."""
        self._stop.set()

    async def run(self) -> None:
        """Serve until `stop`, SIGTERM or SIGINT. Raises the exception of a fact handler, a timer or `started`."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        topics = [kind_of(message) for message in self.handlers if issubclass(message, Fact)]
        await self.bus.start(topics, follow_links=PeerUp in self.handlers or PeerDown in self.handlers)
        publisher = _PublishWarnings(self.bus, loop)
        logging.getLogger().addHandler(publisher)
        try:
            await self.started()
            await self._serve_until_stopped()
        except ExceptionGroup as failures:
            # The first failure ends the process; the others, if any, are of tasks that ended at the same moment.
            raise failures.exceptions[0] from None
        finally:
            logging.getLogger().removeHandler(publisher)
            await self.stopping()
            await self.bus.close()

    async def _serve_until_stopped(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            timers = [
                getattr(self, name) for name, method in inspect.getmembers(type(self)) if hasattr(method, "every")
            ]
            loops = [
                tasks.create_task(self.bus.failed()),
                tasks.create_task(self._serve(tasks)),
                *(tasks.create_task(_repeat(timer)) for timer in timers),
            ]
            await self._stop.wait()
            for task in (*loops, *self._serving.values()):
                task.cancel()

    async def _serve(self, tasks: asyncio.TaskGroup) -> None:
        async for envelope in self.bus.deliveries():
            message = envelope.message
            if isinstance(message, RequestCancel):
                if task := self._serving.get((envelope.header.sender, message.request)):
                    task.cancel()
            elif isinstance(message, Work):
                await self._begin(tasks, message, envelope)
            elif message is not None:
                if type(message) in self.handlers:
                    await self._handler(message)(message, envelope)
            elif not envelope.is_fact and not envelope.header.cause:
                await self._reply(envelope, RequestFailed(*self._unsupported(envelope.header.kind)))

    async def _begin(self, tasks: asyncio.TaskGroup, work: Work, envelope: Envelope) -> None:
        """Serve work in a task of its own, unless it was published, is being served already, or is too much."""
        key = (envelope.header.sender, envelope.header.id)
        if envelope.is_fact or key in self._serving:
            return
        if isinstance(work, RequestCheck):
            await self._reply(envelope, self._check(envelope.header.sender, work.request))
            return
        if len(self._serving) >= MAX_WORK:
            why = f"{self.bus.address} serves {MAX_WORK} requests already; try again soon"
            await self._reply(envelope, RequestFailed(FailureCode.BUSY, why))
            return
        self._serving[key] = task = tasks.create_task(self._work(work, envelope))
        task.add_done_callback(lambda _: self._serving.pop(key, None))

    async def _work(self, work: Work, envelope: Envelope) -> None:
        reply: Reply | None
        try:
            reply = await self._handler(work)(work, envelope)
        except RequestError as error:
            reply = RequestFailed(error.code, error.message)
        except Exception as error:
            kind, sender = envelope.header.kind, envelope.header.sender
            self._limited.exception(kind, "serving %s from %s", kind, sender)
            reply = RequestFailed(FailureCode.INTERNAL, f"{self.bus.address} failed at {kind}: {error!r}; see its log")
        if reply is not None:
            await self._reply(envelope, reply)

    def _check(self, sender: str, request: str) -> Reply:
        """Return whether a request is being served. If not, its reply was sent before this one, or it never came."""
        if (sender, request) in self._serving:
            return RequestWorking()
        return RequestFailed(
            FailureCode.NOT_SERVED, f"the actor {self.bus.name!r} lost this request, or its reply was lost; try again"
        )

    async def _reply(self, envelope: Envelope, reply: Reply) -> None:
        requester, cause = envelope.header.sender, envelope.header.id
        try:
            await self.bus.send(requester, reply, cause=cause)
        except RequestError as error:
            if error.code == FailureCode.UNSENDABLE and not isinstance(reply, RequestFailed):
                await self._reply(envelope, RequestFailed(error.code, error.message))
            else:
                self._limited.warning(requester, "cannot reply to %s: %s", requester, error)

    def _handler(self, message: Message) -> Callable[[Message, Envelope], Awaitable[Reply | None]]:
        attribute = self.handlers.get(type(message))
        if attribute is None:
            raise RequestError(*self._unsupported(kind_of(type(message))))
        handler: Callable[[Message, Envelope], Awaitable[Reply | None]] = getattr(self, attribute)
        return handler

    def _unsupported(self, kind: str) -> tuple[FailureCode, str]:
        return FailureCode.UNSUPPORTED, f"{self.bus.address} does not serve {kind}"


async def _repeat(method: Callable[[], Awaitable[None]]) -> None:
    pause: float = method.every  # type: ignore[attr-defined]  # set by @every
    while True:
        await method()
        await asyncio.sleep(pause)


class _PublishWarnings(logging.Handler):
    """Publishes warnings as `log` facts, so that `exobus bus sub log` shows those of the whole cluster."""

    def __init__(self, bus: BusClient, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(logging.WARNING)
        self._bus = bus
        self._loop = loop
        self._tasks: set[asyncio.Task[None]] = set()

    def emit(self, record: logging.LogRecord) -> None:
        fact = Log(record.levelname, record.name, record.getMessage())
        self._loop.call_soon_threadsafe(self._publish, fact)

    def _publish(self, fact: Log) -> None:
        task = self._loop.create_task(self._bus.publish(fact))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
