"""Requests that wait long: the client asks whether they are still served."""

from __future__ import annotations

import asyncio

import pytest

from bus import client as bus_client
from bus.actor import Actor, on
from bus.client import BusClient, RequestError
from bus.messages import LinkProbe, RequestCheck, RequestDone, RequestWorking
from tests.support.bus import (
    WITHIN_S,
    RunningHub,
    client,
    clients,
    described,
    hubs,
    link,
    new_node,
    next_message,
    run,
    running_hub,
    subscribed,
)

A, B = new_node(), new_node()


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus_client, "CHECK_EVERY_S", 0.05)


class Worker(Actor):
    """Serves each probe until it may reply."""

    name = "worker"

    def __init__(self, bus: BusClient) -> None:
        super().__init__(bus)
        self.begun = asyncio.Event()
        self.may_reply = asyncio.Event()

    @on(LinkProbe)
    async def work(self, message: LinkProbe, envelope: object) -> RequestDone:
        self.begun.set()
        await self.may_reply.wait()
        return RequestDone()


async def started(hub: RunningHub) -> tuple[Worker, asyncio.Task[None]]:
    worker = Worker(BusClient(hub.run_dir, hub.node_id, Worker.name))
    return worker, asyncio.create_task(worker.run())


async def stopped(worker: Worker, running: asyncio.Task[None]) -> None:
    worker.stop()
    await asyncio.wait_for(running, WITHIN_S)


@pytest.mark.parametrize("nodes", [(A,), (A, B)], ids=["one node", "two nodes"])
def test_request_lost_by_its_actor_fails(nodes: tuple[str, ...]) -> None:
    async def test(running: list[RunningHub]) -> None:
        async with clients(running[:1], "asker") as [asker]:
            if len(running) > 1:
                await link(asker, running[1].join_endpoint)
            first = await started(running[-1])
            await described(asker, lambda state: "worker" in [a.name for a in state.actors], f"{nodes[-1]}/hub")
            request = asyncio.create_task(asker.request(f"{nodes[-1]}/worker", LinkProbe(), RequestDone, 60.0))
            await asyncio.wait_for(first[0].begun.wait(), WITHIN_S)
            await stopped(*first)  # as if it was killed, and the fact of its end lost
            second = await started(running[-1])
            with pytest.raises(RequestError) as failed:
                await asyncio.wait_for(request, WITHIN_S)
            assert (failed.value.code, failed.value.code.retryable) in {("not_served", True), ("undeliverable", True)}
            await stopped(*second)

    with hubs(*nodes) as running:
        run(test(running))


def test_request_in_work_is_waited_for() -> None:
    async def test(hub: RunningHub) -> None:
        async with clients([hub], "asker") as [asker], client(hub.run_dir, A, "inspector", "tap.") as inspector:
            await subscribed(asker, "hub", "tap.")
            worker, running = await started(hub)
            await described(asker, lambda state: "worker" in [a.name for a in state.actors])
            request = asyncio.create_task(asker.request("worker", LinkProbe(), RequestDone, 60.0))
            for _ in range(3):
                await next_message(inspector, RequestWorking)
            assert not request.done()
            worker.may_reply.set()
            assert await asyncio.wait_for(request, WITHIN_S) == RequestDone()
            await stopped(worker, running)

    with running_hub(A) as hub:
        run(test(hub))


def test_silence_changes_nothing() -> None:
    async def test(hub: RunningHub) -> None:
        async with clients([hub], "asker") as [asker], clients([hub], "worker") as [silent]:
            request = asyncio.create_task(asker.request("worker", LinkProbe(), RequestDone, 60.0))
            header = (await next_message(silent, LinkProbe))[1].header
            for _ in range(3):
                assert (await next_message(silent, RequestCheck))[0].request == header.id
            await silent.send(header.sender, RequestDone(), cause=header.id)
            assert await asyncio.wait_for(request, WITHIN_S) == RequestDone()

    with running_hub(A) as hub:
        run(test(hub))
