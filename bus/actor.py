"""The actor loop: dispatch by message class, timers, and the failure policy, written once. No sockets here.

While serving work, an exception becomes `request.failed` to the asker. Anywhere else (a fact, a timer, start-up)
it ends the process, and the supervisor starts it again.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, TypeVar

from bus.client import BusClient, RequestError
from bus.messages import Fact, Log, Message, Reply, RequestCancel, RequestFailed, Work, kind_of
from bus.wire import Envelope
from cluster.failures import FailureCode
from common.rate_limit import RateLimitedLogger

logger = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Awaitable[Any]])
MAX_WORK = 256  # work being served at one time; beyond it the asker is told that we are busy


def on(*messages: type[Message]) -> Callable[[F], F]:
    """Mark a method `async (self, message, envelope)` as the one that serves these messages.

    For work, what it returns is the reply (None: no reply). The marks also give the actor its subscriptions.
    """

    def mark(method: F) -> F:
        method.__dict__["serves"] = messages
        return method

    return mark


def every(seconds: float) -> Callable[[F], F]:
    """Mark a method `async (self)` to be run over and over, with this pause between two runs."""

    def mark(method: F) -> F:
        method.__dict__["every"] = seconds
        return method

    return mark


class Actor:
    """One process with one job. Subclasses give `name` and marked methods; their state needs no locks.

    Facts are served one after the other, in order; each piece of work in a task of its own.
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
        self._serving: dict[tuple[str, str], asyncio.Task[None]] = {}  # by who asked, and the work's id
        self._lines = RateLimitedLogger(logger)
        self._stop = asyncio.Event()

    async def started(self) -> None:
        """Runs once before the first message. An exception ends the process."""

    async def stopping(self) -> None:
        """Runs once after the last message, while the bus still works."""

    def stop(self) -> None:
        """End the loop soon."""
        self._stop.set()

    async def run(self) -> None:
        """Serve until `stop`, SIGTERM or SIGINT. Raises what a fact handler, a timer or `started` raised."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        await self.bus.start([kind_of(message) for message in self.handlers if issubclass(message, Fact)])
        watcher = _PublishWarnings(self.bus, loop)
        logging.getLogger().addHandler(watcher)
        try:
            await self.started()
            await self._serve_until_stopped()
        finally:
            logging.getLogger().removeHandler(watcher)
            for task in self._serving.values():
                task.cancel()
            await asyncio.gather(*self._serving.values(), return_exceptions=True)
            await self.stopping()
            await self.bus.close()

    async def _serve_until_stopped(self) -> None:
        timers = [method for method in _methods(self) if hasattr(method, "every")]
        stopped = asyncio.create_task(self._stop.wait())
        tasks = {
            stopped,
            asyncio.create_task(self._serve()),
            *(asyncio.create_task(_repeat(m)) for m in timers),
        }
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self) -> None:
        async for envelope in self.bus.deliveries():
            message = envelope.message
            if isinstance(message, RequestCancel):
                if task := self._serving.get((envelope.header.sender, message.request)):
                    task.cancel()
            elif isinstance(message, Work):
                if "/" in envelope.to and _asked(envelope) not in self._serving:  # neither published nor twice
                    await self._begin(message, envelope)
            elif message is not None:
                await self._hear(message, envelope)
            elif "/" in envelope.to and not envelope.header.cause:
                await self._answer(envelope, RequestFailed(*self._unsupported(envelope.header.kind)))

    async def _hear(self, fact: Message, envelope: Envelope) -> None:
        if type(fact) in self.handlers:
            await self._handler(fact)(fact, envelope)

    async def _begin(self, work: Work, envelope: Envelope) -> None:
        if len(self._serving) >= MAX_WORK:
            busy = RequestFailed(
                FailureCode.BUSY, f"{self.bus.address} serves {MAX_WORK} requests already; try again soon"
            )
            await self._answer(envelope, busy)
            return
        task = asyncio.create_task(self._work(work, envelope))
        self._serving[_asked(envelope)] = task
        task.add_done_callback(lambda _: self._serving.pop(_asked(envelope), None))

    async def _work(self, work: Work, envelope: Envelope) -> None:
        """The failure policy for work."""
        reply: Reply | None
        try:
            reply = await self._handler(work)(work, envelope)
        except RequestError as error:
            reply = RequestFailed(error.code, error.message)
        except Exception as error:
            kind, asker = envelope.header.kind, envelope.header.sender
            self._lines.exception(kind, "serving %s from %s", kind, asker)
            reply = RequestFailed(
                FailureCode.INTERNAL, f"{self.bus.address} failed at {envelope.header.kind}: {error!r}; see its log"
            )
        if reply is not None:
            await self._answer(envelope, reply)

    async def _answer(self, envelope: Envelope, reply: Reply) -> None:
        asker, cause = envelope.header.sender, envelope.header.id
        try:
            await self.bus.send(asker, reply, cause=cause)
        except RequestError as error:
            if error.code == FailureCode.UNSENDABLE and not isinstance(reply, RequestFailed):
                await self._answer(envelope, RequestFailed(error.code, error.message))
            else:
                self._lines.warning(asker, "no way to answer %s: %s", asker, error)

    def _handler(self, message: Message) -> Callable[[Message, Envelope], Awaitable[Reply | None]]:
        attribute = self.handlers.get(type(message))
        if attribute is None:
            raise RequestError(*self._unsupported(kind_of(type(message))))
        handler: Callable[[Message, Envelope], Awaitable[Reply | None]] = getattr(self, attribute)
        return handler

    def _unsupported(self, kind: str) -> tuple[FailureCode, str]:
        return FailureCode.UNSUPPORTED, f"{self.bus.address} does not serve {kind}"


def _asked(envelope: Envelope) -> tuple[str, str]:
    return envelope.header.sender, envelope.header.id


def _methods(actor: Actor) -> list[Callable[[], Awaitable[None]]]:
    return [getattr(actor, name) for name in dir(type(actor)) if callable(getattr(type(actor), name))]


async def _repeat(method: Callable[[], Awaitable[None]]) -> None:
    pause: float = method.every  # type: ignore[attr-defined]  # set by @every
    while True:
        await method()
        await asyncio.sleep(pause)


class _PublishWarnings(logging.Handler):
    """Repeats warnings as `log` facts, so that `exobus bus sub log` shows a whole cluster's."""

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
