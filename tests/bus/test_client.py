"""An actor's connection to its hub: requests, replies, facts, deadlines and losses."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
import zmq

from bus.address import Address
from bus.client import FACTS_WAITING, BusClient, RequestError
from bus.messages import (
    ActorDown,
    HubDescribe,
    HubState,
    InstanceEnsure,
    LinkProbe,
    Log,
    RequestCancel,
    RequestDone,
    RequestFailed,
    Status,
    TopologyState,
)
from bus.wire import encode, new_header
from cluster.failures import FailureCode
from tests.support.bus import WITHIN_S, client, in_time, next_message, run_folder, running_hub, subscribed

A, B = "a" * 16, "b" * 16
Test = Callable[[BusClient, BusClient], Awaitable[None]]


def with_two(test: Test) -> None:
    """Run with an `asker` and a `worker` at one hub."""

    async def main() -> None:
        with running_hub(A) as hub:
            async with client(hub.run_dir, A, "asker", Status) as asker, client(hub.run_dir, A, "worker") as worker:
                await test(asker, worker)

    asyncio.run(main())


def test_address_without_node_means_this_node() -> None:
    async def test(asker: BusClient, worker: BusClient) -> None:
        assert asker.address == f"{A}/asker"
        for address in ("worker", f"{A}/worker"):
            await asker.send(address, LinkProbe())
            assert (await next_message(worker, LinkProbe))[1].to == Address(A, "worker")

    with_two(test)


def test_reply_finds_its_request() -> None:
    async def test(asker: BusClient, worker: BusClient) -> None:
        requests = [asyncio.create_task(asker.request("worker", LinkProbe(), HubState, WITHIN_S)) for _ in range(5)]
        probes = [(await next_message(worker, LinkProbe))[1].header for _ in requests]
        for number, header in reversed(list(enumerate(probes))):
            await worker.send(header.sender, HubState(str(number), "", ""), cause=header.id)
        assert [state.node_id for state in await asyncio.gather(*requests)] == ["0", "1", "2", "3", "4"]

    with_two(test)


def test_failure_keeps_code_and_sentence() -> None:
    async def test(asker: BusClient, worker: BusClient) -> None:
        request = asyncio.create_task(asker.request("worker", LinkProbe(), RequestDone, WITHIN_S))
        header = (await next_message(worker, LinkProbe))[1].header
        await worker.send(header.sender, RequestFailed(FailureCode.CONFLICT, "try tomorrow"), cause=header.id)
        with pytest.raises(RequestError, match="try tomorrow") as refused:
            await request
        assert refused.value.code == "conflict"

    with_two(test)


def test_reply_of_another_kind_is_an_error() -> None:
    async def test(asker: BusClient, worker: BusClient) -> None:
        with pytest.raises(RequestError, match=r"answered hub\.state, which does not fit") as refused:
            await asker.request("hub", HubDescribe(), TopologyState, WITHIN_S)
        assert refused.value.code == "unexpected"

    with_two(test)


def test_request_ends_at_its_deadline() -> None:
    async def test(asker: BusClient, worker: BusClient) -> None:
        with pytest.raises(RequestError, match=r"worker did not answer link\.probe within 0\.05 s") as refused:
            await asker.request("worker", LinkProbe(), RequestDone, 0.05)
        assert refused.value.code == "timeout"
        asked = (await next_message(worker, LinkProbe))[1].header.id
        assert (await next_message(worker, RequestCancel))[0] == RequestCancel(asked)

    with_two(test)


def test_cancel_reaches_the_other_side() -> None:
    async def test(asker: BusClient, worker: BusClient) -> None:
        request = asyncio.create_task(asker.request("worker", LinkProbe(), RequestDone, WITHIN_S))
        asked = (await next_message(worker, LinkProbe))[1].header.id
        request.cancel()
        assert (await next_message(worker, RequestCancel))[0] == RequestCancel(asked)
        with pytest.raises(asyncio.CancelledError):
            await request

    with_two(test)


def test_late_reply_is_dropped() -> None:
    async def test(asker: BusClient, worker: BusClient) -> None:
        with pytest.raises(RequestError, match="did not answer"):
            await asker.request("worker", LinkProbe(), RequestDone, 0.01)
        late = (await next_message(worker, LinkProbe))[1].header
        await worker.send(late.sender, RequestDone(), cause=late.id)
        await worker.send("asker", LinkProbe())
        assert (await next_message(asker, (RequestDone, LinkProbe)))[0] == LinkProbe()

    with_two(test)


def test_reply_of_another_node_is_dropped() -> None:
    async def test(asker: BusClient, worker: BusClient) -> None:
        request = asyncio.create_task(asker.request("worker", LinkProbe(), RequestDone, WITHIN_S))
        cause = (await next_message(worker, LinkProbe))[1].header.id
        false = RequestFailed(FailureCode.UNDELIVERABLE, "from a node that was not asked")
        for impostor in (f"{B}/worker", f"{B}/hub", "/hub", "hub"):
            header = new_header(false, impostor, cause=cause)
            await worker._push(encode(asker.address, header, false), WITHIN_S)
        await worker.send(asker.address, RequestDone(), cause=cause)
        assert await request == RequestDone()
        assert asker.dropped == {"foreign reply": 4}

    with_two(test)


def test_own_hub_reports_unlinked_node() -> None:
    async def test(asker: BusClient, worker: BusClient) -> None:
        with pytest.raises(RequestError, match=f"node {B} is not linked") as refused:
            await asker.request(f"{B}/worker", LinkProbe(), RequestDone, WITHIN_S)
        assert refused.value.code == "undeliverable"
        assert not asker.dropped

    with_two(test)


def test_work_is_numbered_by_address() -> None:
    async def test(asker: BusClient, worker: BusClient) -> None:
        for _ in range(3):
            await asker.send("worker", LinkProbe())
        headers = [(await next_message(worker, LinkProbe))[1].header for _ in range(3)]
        assert [header.sequence for header in headers] == [1, 2, 3]
        assert len({header.life for header in headers}) == 1
        await asker.send("asker", LinkProbe())
        assert (await next_message(asker, LinkProbe))[1].header.sequence == 1

    with_two(test)


def test_oversized_field_is_an_error_of_the_sender() -> None:
    async def test(asker: BusClient, worker: BusClient) -> None:
        with pytest.raises(RequestError, match=r"instance\.ensure cannot be sent to worker: body") as refused:
            await asker.request("worker", InstanceEnsure("m" * 1000), RequestDone, WITHIN_S)
        assert refused.value.code == "unsendable"
        await asker.send("worker", LinkProbe())
        await next_message(worker, LinkProbe)

    with_two(test)


def test_unsendable_fact_is_logged_and_dropped(caplog: pytest.LogCaptureFixture) -> None:
    async def test(asker: BusClient, worker: BusClient) -> None:
        await subscribed(worker, "hub", "status")
        for _ in range(3):
            await worker.publish(Status("m" * 1000, "text"))
        await worker.publish(Status("m", "text"))
        assert (await next_message(asker, Status))[0] == Status("m", "text")
        assert worker.dropped == {"unsendable": 3}

    with_two(test)
    assert [r.getMessage().partition(":")[0] for r in caplog.records] == ["status is not published"]


def test_request_fails_when_its_actor_dies() -> None:
    async def test(asker: BusClient, worker: BusClient) -> None:
        request = asyncio.create_task(asker.request("worker", LinkProbe(), RequestDone, 60.0))
        await next_message(worker, LinkProbe)
        await subscribed(worker, "hub", "actor.down")
        await worker.publish(ActorDown("another", "killed", False))
        await worker.publish(ActorDown("worker", "killed by SIGKILL", False))
        with pytest.raises(
            RequestError, match="actor 'worker' is gone: killed by SIGKILL; it is started again"
        ) as refused:
            await request
        assert refused.value.code == "undeliverable"

    with_two(test)


def test_facts_are_numbered_by_kind() -> None:
    async def test(asker: BusClient, worker: BusClient) -> None:
        await subscribed(worker, "hub", "status")
        for number in range(3):
            await worker.publish(Status("m", str(number)))
        sequences = [(await next_message(asker, Status))[1].header.sequence for _ in range(3)]
        assert sequences == [1, 2, 3]

    with_two(test)


def test_facts_without_subscribers_are_not_encoded() -> None:
    async def test(asker: BusClient, worker: BusClient) -> None:
        await subscribed(worker, "hub", "status")
        await worker.publish(Log("L" * 1000, "x", "no receiver would accept it"))
        assert not worker.dropped
        await worker.publish(Status("m", "text"))
        assert (await next_message(asker, Status))[0] == Status("m", "text")

    with_two(test)


def test_client_knows_which_facts_have_subscribers() -> None:
    async def main() -> None:
        with running_hub(A) as hub:
            async with client(hub.run_dir, A, "worker") as worker:
                assert not worker.has_subscribers(Status)
                async with client(hub.run_dir, A, "observer", Status):
                    assert in_time(lambda: worker.has_subscribers(Status))
                    assert not worker.has_subscribers(Log)
                assert in_time(lambda: not worker.has_subscribers(Status))
                async with client(hub.run_dir, A, "observer", ""):
                    assert in_time(lambda: worker.has_subscribers(Log))

    asyncio.run(main())


def test_client_without_hub_has_no_subscribers() -> None:
    async def main() -> None:
        with run_folder() as folder:
            bus = BusClient(folder, A, "alone")
            await bus.start()
            assert not bus.has_subscribers(Status)
            await bus.close()

    asyncio.run(main())


def test_unread_facts_do_not_block_replies() -> None:
    async def test(asker: BusClient, worker: BusClient) -> None:
        await subscribed(worker, "hub", "status")
        for batch in range(10):  # beyond what sockets may hold, a fact is dropped: the hub is asked in between
            for number in range(FACTS_WAITING // 5):
                await worker.publish(Status("m", str(batch * 1000 + number)))
            await worker.request("hub", HubDescribe(), HubState, WITHIN_S)
        async with asyncio.timeout(WITHIN_S):
            while not asker.dropped.get("inbox full"):
                assert (await asker.request("hub", HubDescribe(), HubState, WITHIN_S)).node_id == A

    with_two(test)


def test_invalid_frames_are_counted() -> None:
    async def test(asker: BusClient, worker: BusClient) -> None:
        with zmq.Context() as context, context.socket(zmq.DEALER) as raw:
            raw.connect(worker._paths.work)
            address, header, _ = encode("asker", new_header(LinkProbe(), "raw"), LinkProbe())
            raw.send_multipart([f"{A}/".encode() + address, header, b"\xc1"])
            async with asyncio.timeout(WITHIN_S):
                while not asker.dropped:
                    await asker.request("hub", HubDescribe(), HubState, WITHIN_S)
        assert asker.dropped == {"body": 1}

    with_two(test)


def test_request_without_hub_ends_at_its_deadline() -> None:
    async def main() -> None:
        with run_folder() as folder:
            bus = BusClient(folder, A, "asker")
            await bus.start()
            with pytest.raises(RequestError) as refused:
                await bus.request("hub", HubDescribe(), HubState, 0.1)
            assert refused.value.code == "timeout"
            await bus.publish(Status("m", "without a hub"))
            await bus.close()

    asyncio.run(main())


def test_hello_is_sent_first() -> None:
    async def main() -> None:
        with running_hub(A) as hub:
            bus = BusClient(hub.run_dir, A, "early")
            await bus.start()
            state = await bus.request("hub", HubDescribe(), HubState, WITHIN_S)
            assert "early" in [actor.name for actor in state.actors]
            await bus.close()

    asyncio.run(main())


def test_closed_client_cannot_send() -> None:
    async def main() -> None:
        with running_hub(A) as hub:
            async with client(hub.run_dir, A, "asker") as bus:
                pass
            with pytest.raises(zmq.ZMQError):
                await bus.send("hub", HubDescribe())

    asyncio.run(main())
