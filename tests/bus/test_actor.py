"""The actor loop with a hub: dispatch, timers, and the failure policy."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import msgspec
import pytest
import zmq

from bus import actor as loop
from bus.actor import Actor, every, on
from bus.client import BusClient, RequestError
from bus.messages import (
    InstanceEnsure,
    LinkProbe,
    Log,
    RequestCancel,
    RequestDone,
    RequestFailed,
    ShardUnload,
    StageDrain,
    Status,
    TopologyGet,
    TopologyState,
)
from bus.net.sockets import connect_ipc, open_socket
from bus.wire import decode, encode, new_header
from cluster.failures import FailureCode
from cluster.topology import NodeRecord, Topology
from tests.support.bus import WITHIN_S, client, next_message, running_hub, subscribed

A = "a" * 16


class Worker(Actor):
    """Has one handler for each case."""

    name = "worker"

    def __init__(self, bus: BusClient) -> None:
        super().__init__(bus)
        self.facts: asyncio.Queue[str] = asyncio.Queue()
        self.hanging: asyncio.Queue[None] = asyncio.Queue()
        self.cancelled = asyncio.Event()
        self.ticks: asyncio.Queue[None] = asyncio.Queue()
        self.stopped_cleanly = False

    async def stopping(self) -> None:
        self.stopped_cleanly = True

    @on(LinkProbe)
    async def fine(self, message: LinkProbe, envelope: object) -> RequestDone:
        return RequestDone()

    @on(InstanceEnsure)
    async def refuse(self, message: InstanceEnsure, envelope: object) -> RequestDone:
        raise RequestError(FailureCode.MODEL_NOT_FOUND, f"no model {message.model_id}")

    @on(ShardUnload)
    async def break_down(self, message: ShardUnload, envelope: object) -> RequestDone:
        raise ZeroDivisionError("oh")

    @on(StageDrain)
    async def hang(self, message: StageDrain, envelope: object) -> RequestDone:
        self.hanging.put_nowait(None)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return RequestDone()

    @on(Status)
    async def note(self, message: Status, envelope: object) -> None:
        if message.text == "die":
            raise LookupError("broken fact handler")
        self.facts.put_nowait(message.text)

    @every(0.01)
    async def tick(self) -> None:
        self.ticks.put_nowait(None)


@asynccontextmanager
async def running(actor: type[Worker] = Worker) -> AsyncIterator[tuple[BusClient, Worker, asyncio.Task[None]]]:
    """Start an asker, and a worker that serves. Yields both and the task of the worker's `run`."""
    with running_hub(A) as hub:
        async with client(hub.run_dir, A, "asker", Log) as asker:
            worker = actor(BusClient(hub.run_dir, A, actor.name))
            task = asyncio.create_task(worker.run())
            await until_served(asker)
            try:
                yield asker, worker, task
            finally:
                worker.stop()
                with suppress(Exception):
                    await asyncio.wait_for(task, WITHIN_S)


async def until_served(asker: BusClient) -> None:
    async with asyncio.timeout(WITHIN_S):
        while True:
            with suppress(RequestError):
                await asker.request("worker", LinkProbe(), RequestDone, 1.0)
                return


def with_worker(
    test: Callable[[BusClient, Worker, asyncio.Task[None]], Awaitable[None]], actor: type[Worker] = Worker
) -> None:
    async def main() -> None:
        async with running(actor) as (asker, worker, task):
            await test(asker, worker, task)

    asyncio.run(main())


def test_result_of_a_handler_is_the_reply() -> None:
    async def test(asker: BusClient, worker: Worker, task: asyncio.Task[None]) -> None:
        assert await asker.request("worker", LinkProbe(), RequestDone, WITHIN_S) == RequestDone()

    with_worker(test)


def test_request_error_keeps_code_and_sentence() -> None:
    async def test(asker: BusClient, worker: Worker, task: asyncio.Task[None]) -> None:
        with pytest.raises(RequestError, match="no model m") as refused:
            await asker.request("worker", InstanceEnsure("m"), RequestDone, WITHIN_S)
        assert refused.value.code == "model_not_found"

    with_worker(test)


def test_exception_while_serving_goes_to_the_requester() -> None:
    async def test(asker: BusClient, worker: Worker, task: asyncio.Task[None]) -> None:
        with pytest.raises(RequestError, match=r"worker failed at shard\.unload: ZeroDivisionError\('oh'\)") as refused:
            await asker.request("worker", ShardUnload("i", 1), RequestDone, WITHIN_S)
        assert refused.value.code == "internal"
        await asker.request("worker", LinkProbe(), RequestDone, WITHIN_S)

    with_worker(test)


def test_exception_in_fact_handler_ends_the_process() -> None:
    async def test(asker: BusClient, worker: Worker, task: asyncio.Task[None]) -> None:
        await subscribed(asker, "hub", "status")
        await asker.publish(Status("m", "die"))
        with pytest.raises(LookupError, match="broken fact handler"):
            await asyncio.wait_for(task, WITHIN_S)
        assert worker.stopped_cleanly

    with_worker(test)


def test_exception_in_timer_ends_the_process() -> None:
    class Broken(Worker):
        @every(0.01)
        async def fail(self) -> None:
            if self.facts.qsize():
                raise LookupError("broken timer")

    async def test(asker: BusClient, worker: Worker, task: asyncio.Task[None]) -> None:
        worker.facts.put_nowait("now")
        with pytest.raises(LookupError, match="broken timer"):
            await asyncio.wait_for(task, WITHIN_S)

    with_worker(test, Broken)


def test_exception_in_the_client_ends_the_process() -> None:
    async def test(asker: BusClient, worker: Worker, task: asyncio.Task[None]) -> None:
        del worker.bus._inbox
        await subscribed(asker, "hub", "status")
        await asker.publish(Status("m", "breaks the reader"))
        with pytest.raises(AttributeError, match="_inbox"):
            await asyncio.wait_for(task, WITHIN_S)
        assert worker.stopped_cleanly

    with_worker(test)


def test_exception_at_start_closes_everything() -> None:
    class Unable(Worker):
        async def started(self) -> None:
            raise LookupError("no start")

    async def main() -> None:
        with running_hub(A) as hub:
            worker = Unable(BusClient(hub.run_dir, A, "worker"))
            with pytest.raises(LookupError, match="no start"):
                await worker.run()
            assert worker.stopped_cleanly
            with pytest.raises(zmq.ZMQError):
                await worker.bus.send("hub", LinkProbe())

    asyncio.run(main())


def test_work_without_handler_is_refused() -> None:
    async def test(asker: BusClient, worker: Worker, task: asyncio.Task[None]) -> None:
        with pytest.raises(RequestError, match=r"worker does not serve topology\.get") as refused:
            await asker.request("worker", TopologyGet(), TopologyState, 60.0)
        assert refused.value.code == "unsupported"

    with_worker(test)


def test_work_of_unknown_kind_is_refused() -> None:
    async def test(asker: BusClient, worker: Worker, task: asyncio.Task[None]) -> None:
        with zmq.Context() as context, open_socket(context, zmq.DEALER) as dealer:
            connect_ipc(dealer, asker._paths.work)
            header = msgspec.structs.replace(new_header(LinkProbe(), f"{A}/raw"), kind="from.the.future")
            dealer.send_multipart(encode(worker.bus.address, header, LinkProbe()))
            assert await asyncio.to_thread(dealer.poll, 5000)
            reply = decode(dealer.recv_multipart()).message
        assert reply == RequestFailed(FailureCode.UNSUPPORTED, f"{A}/worker does not serve from.the.future")

    with_worker(test)


def test_timeout_cancels_the_handler() -> None:
    async def test(asker: BusClient, worker: Worker, task: asyncio.Task[None]) -> None:
        with pytest.raises(RequestError, match="did not answer"):
            await asker.request("worker", StageDrain(), RequestDone, 0.05)
        await asyncio.wait_for(worker.cancelled.wait(), WITHIN_S)
        await asker.request("worker", LinkProbe(), RequestDone, WITHIN_S)

    with_worker(test)


def test_cancel_of_another_sender_is_ignored() -> None:
    async def test(asker: BusClient, worker: Worker, task: asyncio.Task[None]) -> None:
        request = asyncio.create_task(asker.request("worker", StageDrain(), RequestDone, WITHIN_S))
        await asyncio.wait_for(worker.hanging.get(), WITHIN_S)
        ((_, work),) = worker._serving
        for impostor in (f"{'c' * 16}/asker", f"{A}/another", f"{'c' * 16}/hub"):
            header = new_header(RequestCancel(work), impostor)
            await asker._push(encode(worker.bus.address, header, RequestCancel(work)), WITHIN_S)
        await asker.request("worker", LinkProbe(), RequestDone, WITHIN_S)  # behind the cancels
        assert not worker.cancelled.is_set()
        request.cancel()
        await asyncio.wait_for(worker.cancelled.wait(), WITHIN_S)

    with_worker(test)


def test_repeated_work_is_served_once() -> None:
    async def test(asker: BusClient, worker: Worker, task: asyncio.Task[None]) -> None:
        header = new_header(StageDrain(), asker.address)
        for _ in range(3):
            await asker._push(encode(worker.bus.address, header, StageDrain()), WITHIN_S)
        await asyncio.wait_for(worker.hanging.get(), WITHIN_S)
        await asker.request("worker", LinkProbe(), RequestDone, WITHIN_S)
        assert worker.hanging.empty()
        assert list(worker._serving) == [(asker.address, header.id)]

    with_worker(test)


def test_published_work_is_not_served() -> None:
    async def test(asker: BusClient, worker: Worker, task: asyncio.Task[None]) -> None:
        worker.bus.subscribe("stage.drain")
        await subscribed(asker, "hub", "stage.drain", "status")
        frames = encode("stage.drain", new_header(StageDrain(), asker.address), StageDrain())
        assert asker.has_subscribers(Status)
        asker._publisher._socket.send_multipart(frames)
        await asker.publish(Status("m", "behind it"))
        assert await asyncio.wait_for(worker.facts.get(), WITHIN_S) == "behind it"
        assert worker.hanging.empty()

    with_worker(test)


def test_unsendable_reply_becomes_a_failure() -> None:
    class Verbose(Worker):
        @on(TopologyGet)
        async def get(self, message: TopologyGet, envelope: object) -> TopologyState:
            return TopologyState(Topology(nodes=(NodeRecord("n" * 1000, "", 1, 1),)))

    async def test(asker: BusClient, worker: Worker, task: asyncio.Task[None]) -> None:
        with pytest.raises(RequestError, match=r"topology\.state cannot be sent") as refused:
            await asker.request("worker", TopologyGet(), TopologyState, WITHIN_S)
        assert refused.value.code == "unsendable"

    with_worker(test, Verbose)


def test_repeated_exceptions_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    async def test(asker: BusClient, worker: Worker, task: asyncio.Task[None]) -> None:
        for _ in range(20):
            with pytest.raises(RequestError, match="ZeroDivisionError"):
                await asker.request("worker", ShardUnload("i", 1), RequestDone, WITHIN_S)

    with_worker(test)
    assert len([record for record in caplog.records if "serving shard.unload" in record.getMessage()]) == 1


def test_work_beyond_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "MAX_WORK", 2)

    async def test(asker: BusClient, worker: Worker, task: asyncio.Task[None]) -> None:
        hanging = [asyncio.create_task(asker.request("worker", StageDrain(), RequestDone, 60.0))]
        await asyncio.wait_for(worker.hanging.get(), WITHIN_S)
        await asker.request("worker", LinkProbe(), RequestDone, WITHIN_S)
        async with asyncio.timeout(WITHIN_S):
            while len(hanging) < 2:  # the probe's place is free a moment after its reply
                request = asyncio.create_task(asker.request("worker", StageDrain(), RequestDone, 60.0))
                begun = asyncio.create_task(worker.hanging.get())
                await asyncio.wait({request, begun}, return_when=asyncio.FIRST_COMPLETED)
                begun.cancel()
                hanging += [] if request.done() and request.exception() else [request]
        with pytest.raises(RequestError, match="serves 2 requests already; try again soon") as refused:
            await asker.request("worker", LinkProbe(), RequestDone, WITHIN_S)
        assert refused.value.code == "busy"
        for request in hanging:
            request.cancel()
        await asyncio.gather(*hanging, return_exceptions=True)
        await until_served(asker)

    with_worker(test)


def test_facts_are_handled_in_order() -> None:
    async def test(asker: BusClient, worker: Worker, task: asyncio.Task[None]) -> None:
        await subscribed(asker, "hub", "status")
        for number in range(50):
            await asker.publish(Status("m", str(number)))
        facts = [await asyncio.wait_for(worker.facts.get(), WITHIN_S) for _ in range(50)]
        assert facts == [str(number) for number in range(50)]

    with_worker(test)


def test_timer_runs_again_and_again() -> None:
    async def test(asker: BusClient, worker: Worker, task: asyncio.Task[None]) -> None:
        for _ in range(5):
            await asyncio.wait_for(worker.ticks.get(), WITHIN_S)

    with_worker(test)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_the_loop_cleanly(number: signal.Signals) -> None:
    async def test(asker: BusClient, worker: Worker, task: asyncio.Task[None]) -> None:
        os.kill(os.getpid(), number)
        await asyncio.wait_for(task, WITHIN_S)
        assert worker.stopped_cleanly

    with_worker(test)


def test_reply_to_a_lost_node_is_no_failure() -> None:
    async def test(asker: BusClient, worker: Worker, task: asyncio.Task[None]) -> None:
        header = new_header(LinkProbe(), f"{'c' * 16}/gone")
        await asker._push(encode(worker.bus.address, header, LinkProbe()), 1.0)
        await asker.request("worker", LinkProbe(), RequestDone, WITHIN_S)

    with_worker(test)


def test_warnings_are_published() -> None:
    async def test(asker: BusClient, worker: Worker, task: asyncio.Task[None]) -> None:
        await subscribed(asker, "hub", "log")
        logging.getLogger("here").warning("the %s is broken", "roof")
        assert (await next_message(asker, Log))[0] == Log("WARNING", "here", "the roof is broken")

    with_worker(test)


def test_subclass_inherits_handlers() -> None:
    class Topologist(Worker):
        @on(TopologyGet)
        async def get(self, message: TopologyGet, envelope: object) -> TopologyState:
            return TopologyState(Topology())

    assert Topologist.handlers.keys() == {*Worker.handlers, TopologyGet}
    assert TopologyGet not in Worker.handlers
