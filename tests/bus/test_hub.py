"""Real hubs on loopback: what passes, what stays, what comes back, and what is not ours."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bus.client import BusClient, RequestError
from bus.hub import Hub
from bus.messages import (
    ActorUp,
    HubDescribe,
    HubState,
    LinkHello,
    LinkProbe,
    Log,
    Message,
    PeerDial,
    PeerDown,
    PeerRefused,
    PeerUp,
    RequestDone,
    Status,
    kind_of,
)
from bus.net.endpoints import address_of, with_key
from bus.wire import encode, new_header
from cluster.failures import FailureCode
from common.config import NodeConfig
from tests.support.bus import (
    KEYS,
    RunningHub,
    client,
    dealer_of,
    described,
    heard,
    hub_config,
    hub_process,
    link,
    new_node,
    run_folder,
    running_hub,
    subscribed,
)

A, B, C = new_node(), new_node(), new_node()


@contextmanager
def hubs(*node_ids: str) -> Iterator[list[RunningHub]]:
    with running_hub(node_ids[0]) as first:
        if len(node_ids) == 1:
            yield [first]
            return
        with hubs(*node_ids[1:]) as others:
            yield [first, *others]


@asynccontextmanager
async def clients(running: list[RunningHub], name: str, *topics: type[Message] | str) -> AsyncIterator[list[BusClient]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(client(hub.run_dir, hub.node_id, name, *topics)) for hub in running]


SOMEBODY_KNOCKED = "somebody knocked with a wrong join code for cluster home"


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


async def answer(bus: BusClient) -> None:
    """Answer the next probe."""
    _, envelope = await heard(bus, LinkProbe)
    await bus.send(envelope.header.sender, RequestDone(), cause=envelope.header.id)


def test_work_reaches_an_actor_of_the_same_node_and_its_answer_comes_back() -> None:
    async def test(hub: RunningHub) -> None:
        async with clients([hub], "asker") as [asker], clients([hub], "worker") as [worker]:
            answering = asyncio.create_task(answer(worker))
            assert await asker.request("worker", LinkProbe(), RequestDone, 5.0) == RequestDone()
            await answering

    with running_hub(A) as hub:
        run(test(hub))


def test_work_reaches_an_actor_of_another_node_and_its_answer_comes_back() -> None:
    async def test(pair: list[RunningHub]) -> None:
        async with clients(pair, "one") as [asker, worker]:
            await link(asker, pair[1].join_endpoint)
            answering = asyncio.create_task(answer(worker))
            assert await asker.request(f"{B}/one", LinkProbe(), RequestDone, 5.0) == RequestDone()
            await answering

    with hubs(A, B) as pair:
        run(test(pair))


def test_a_fact_reaches_another_node_only_where_somebody_subscribed_to_it() -> None:
    async def test(pair: list[RunningHub]) -> None:
        async with clients(pair[:1], "teller") as [teller], clients(pair[1:], "hearer", Status) as [hearer]:
            await link(teller, pair[1].join_endpoint)
            await subscribed(teller, f"{B}/hub", "status")
            await teller.publish(Log("WARNING", "x", "nobody asked for it"))
            await teller.publish(Status("m", "first"))
            fact, envelope = await heard(hearer, Message)
            while isinstance(fact, PeerUp | ActorUp):
                fact, envelope = await heard(hearer, Message)
            assert fact == Status("m", "first")
            assert envelope.node == A

    with hubs(A, B) as pair:
        run(test(pair))


def test_a_subscription_that_comes_later_is_passed_on() -> None:
    async def test(pair: list[RunningHub]) -> None:
        async with clients(pair, "one") as [teller, hearer]:
            await link(teller, pair[1].join_endpoint)
            hearer.subscribe("status")
            await subscribed(teller, f"{B}/hub", "status")
            await teller.publish(Status("m", "later"))
            assert (await heard(hearer, Status))[0].text == "later"

    with hubs(A, B) as pair:
        run(test(pair))


def test_facts_about_links_stay_on_their_node() -> None:
    async def test(trio: list[RunningHub]) -> None:
        async with clients(trio, "one", PeerUp, Status) as [first, second, third]:
            await link(first, trio[1].join_endpoint)
            await heard(second, PeerUp)
            await link(third, trio[0].join_endpoint)  # the first hub tells its own node, and nobody else
            await subscribed(first, f"{B}/hub", "status")
            await first.publish(Status("m", "afterwards"))
            fact, _ = await heard(second, (PeerUp, Status))
            assert isinstance(fact, Status)

    with hubs(A, B, C) as trio:
        run(test(trio))


def test_a_fact_is_heard_once_in_a_ring_of_three_hubs() -> None:
    async def test(trio: list[RunningHub]) -> None:
        async with clients(trio, "one", Status) as members:
            for member, other in zip(members, (B, C, A), strict=True):
                await link(member, next(hub.join_endpoint for hub in trio if hub.node_id == other))
            for member in members:
                await described(member, lambda state: len(state.peers) == 2)
            for node_id in (A, B, C):
                await subscribed(members[0], f"{node_id}/hub", "status")
            await members[0].publish(Status("m", "first"))
            await members[0].publish(Status("m", "last"))
            for member in members:
                assert [(await heard(member, Status))[0].text for _ in range(2)] == ["first", "last"]

    with hubs(A, B, C) as trio:
        run(test(trio))


@pytest.mark.parametrize(
    ("to", "sentence"),
    [("nobody", f"no actor 'nobody' answers on node name of {A}"), (f"{C}/node", f"node {C} is not linked")],
)
def test_work_for_nobody_comes_back_at_once(to: str, sentence: str) -> None:
    async def test(hub: RunningHub) -> None:
        async with clients([hub], "asker") as [asker]:
            with pytest.raises(RequestError, match=sentence) as refused:
                await asker.request(to, LinkProbe(), RequestDone, 60.0)
            assert refused.value.code == "undeliverable"

    with running_hub(A) as hub:
        run(test(hub))


def test_work_for_nobody_on_another_node_comes_back_from_there() -> None:
    async def test(pair: list[RunningHub]) -> None:
        async with clients(pair[:1], "asker") as [asker]:
            await link(asker, pair[1].join_endpoint)
            with pytest.raises(RequestError, match=f"no actor 'nobody' answers on node name of {B}"):
                await asker.request(f"{B}/nobody", LinkProbe(), RequestDone, 60.0)

    with hubs(A, B) as pair:
        run(test(pair))


def test_work_for_an_actor_that_went_away_comes_back_at_once() -> None:
    async def test(hub: RunningHub) -> None:
        async with clients([hub], "asker") as [asker]:
            async with clients([hub], "worker"):
                pass
            with pytest.raises(RequestError) as refused:
                await asker.request("worker", LinkProbe(), RequestDone, 60.0)
            assert refused.value.code == "undeliverable"

    with running_hub(A) as hub:
        run(test(hub))


def test_a_hub_says_what_it_does_not_do_also_to_another_node() -> None:
    async def test(pair: list[RunningHub]) -> None:
        async with clients(pair[:1], "asker") as [asker]:
            await link(asker, pair[1].join_endpoint)
            for hub in ("hub", f"{B}/hub"):
                with pytest.raises(RequestError, match=r"a hub does not serve link\.probe"):
                    await asker.request(hub, LinkProbe(), RequestDone, 60.0)

    with hubs(A, B) as pair:
        run(test(pair))


def test_a_killed_peer_is_down_in_a_moment_and_requests_to_it_end() -> None:
    async def test(hub: RunningHub, folder: Path) -> None:
        config = hub_config(folder, B, "victim")
        with hub_process(config) as victim:
            async with client(folder, B, "worker") as worker, clients([hub], "asker", PeerDown) as [asker]:
                await link(worker, hub.join_endpoint)
                await described(asker, lambda state: len(state.peers) == 1)
                waiting = asyncio.create_task(asker.request(f"{B}/worker", LinkProbe(), RequestDone, 60.0))
                await heard(worker, LinkProbe)
                begun = asyncio.get_running_loop().time()
                victim.signal(signal.SIGKILL)
                lost, _ = await heard(asker, PeerDown)
                assert asyncio.get_running_loop().time() - begun < 1.0
                assert lost.node_id == B
                with pytest.raises(RequestError, match=f"node {B} is gone: the connection broke"):
                    await waiting

    with running_hub(A) as hub, run_folder() as folder:
        run(test(hub, folder))


def test_a_hub_that_begins_anew_knows_its_actors_and_its_peer_again() -> None:
    async def test(hub: RunningHub, folder: Path) -> None:
        config = hub_config(folder, B, "victim")
        with hub_process(config) as victim:
            async with client(folder, B, "worker") as worker, clients([hub], "asker", PeerUp, PeerDown) as [asker]:
                port = port_of((await link(worker, hub.join_endpoint)).endpoint)
                await heard(asker, PeerUp)
                victim.signal(signal.SIGKILL)
                await heard(asker, PeerDown)
                victim.process.wait(5.0)
                with hub_process(NodeConfig(**(_fields(config) | {"bus_port": port}))):
                    await described(worker, lambda state: any(actor.name == "worker" for actor in state.actors))
                    join_endpoint = (await described(worker, lambda state: bool(state.join_endpoint))).join_endpoint
                    await link(asker, join_endpoint)
                    await heard(asker, PeerUp)
                    answering = asyncio.create_task(answer(worker))
                    await asker.request(f"{B}/worker", LinkProbe(), RequestDone, 5.0)
                    await answering

    with running_hub(A) as hub, run_folder() as folder:
        run(test(hub, folder))


def port_of(endpoint: str) -> int:
    return int(address_of(endpoint).rpartition(":")[2])


def _fields(config: NodeConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in config.__struct_fields__}


def test_a_hub_that_stops_says_goodbye() -> None:
    async def test(pair: list[RunningHub]) -> None:
        async with clients(pair[:1], "asker", PeerDown) as [asker]:
            await link(asker, pair[1].join_endpoint)
            await asyncio.to_thread(pair[1].stop)
            assert (await heard(asker, PeerDown))[0] == PeerDown(B, "it left")

    with hubs(A, B) as pair:
        run(test(pair))


def test_a_peer_named_by_two_addresses_is_linked_once() -> None:
    async def test(pair: list[RunningHub]) -> None:
        async with clients(pair, "one", PeerUp, PeerDown, Status) as [first, second]:
            await link(first, pair[1].join_endpoint)
            await heard(first, PeerUp)
            await first.request(
                "hub", PeerDial(pair[1].join_endpoint.replace("127.0.0.1", "localhost")), RequestDone, 5.0
            )
            await link(second, pair[0].join_endpoint)
            with pytest.raises(TimeoutError):
                await heard(first, (PeerUp, PeerDown), within_s=0.5)
            assert len((await first.request("hub", HubDescribe(), HubState, 5.0)).peers) == 1

    with hubs(A, B) as pair:
        run(test(pair))


def test_hubs_of_two_clusters_do_not_link_and_each_says_so() -> None:
    async def test(home: RunningHub, work: RunningHub) -> None:
        async with clients([home], "one", PeerRefused) as [host], clients([work], "one", PeerRefused) as [guest]:
            await guest.request("hub", PeerDial(home.join_endpoint), RequestDone, 5.0)
            there, _ = await heard(guest, PeerRefused, within_s=3.0)
            here, _ = await heard(host, PeerRefused, within_s=3.0)
            assert there.message.startswith("wrong join code for cluster work: the join port at")
            assert here == PeerRefused(
                "", FailureCode.WRONG_CODE, "somebody knocked with a wrong join code for cluster home"
            )
            assert (await host.request("hub", HubDescribe(), HubState, 5.0)).peers == ()

    with running_hub(A) as home, running_hub(B, cluster="work") as work:
        run(test(home, work))


def test_work_is_tapped_only_while_somebody_listens() -> None:
    async def test(hub: RunningHub) -> None:
        async with clients([hub], "asker") as [asker], clients([hub], "worker") as [worker]:
            async with clients([hub], "inspector", "tap.") as [inspector]:
                await subscribed(asker, "hub", "tap.")
                answering = asyncio.create_task(answer(worker))
                await asker.request("worker", LinkProbe(), RequestDone, 5.0)
                await answering
                _, envelope = await heard(inspector, LinkProbe)
                assert (envelope.to, envelope.header.sender) == ("tap.link.probe", f"{A}/asker")
            await described(asker, lambda state: "tap." not in state.subscriptions)

    with running_hub(A) as hub:
        run(test(hub))


def _frames(to: str, message: Message, sender: str = f"{B}/node") -> list[bytes]:
    return encode(to, new_header(message, sender, sequence=1), message)


def _hello(**changes: Any) -> LinkHello:
    own = LinkHello(B, "liar", 1, with_key("tcp://127.0.0.1:1", KEYS[B].public))
    return msgspec.structs.replace(own, **changes)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([[b"junk"]], "frames"),
        ([[b"/hub"]], "frames"),
        ([[b"\xff/hub", *_frames("", Status("m", "t"))[1:]]], "address"),
        ([[b"/hub", b"\xc1", b"\xc1"]], "header"),
        ([_frames(f"{C}/asker", LinkProbe())], "misdirected"),
        ([_frames("peer.down", PeerDown(C, "a lie"))], "not allowed"),
        ([_frames("log", Status("m", "under a false topic"))], "misdirected"),
        ([_frames("status", Status("m", "t"), sender=f"{C}/node")], "sender"),
        ([_frames(f"{A}/asker", LinkProbe(), sender=f"{C}/node")], "sender"),
        ([_frames("/hub", HubDescribe(), sender=f"{A}/node")], "sender"),
        ([_frames("/hub", _hello(node_id=C))], "sender"),
        ([_frames("/hub", _hello(endpoint="tcp://127.0.0.1:1"))], "sender"),
        ([_frames("/hub", _hello(endpoint=with_key("tcp://127.0.0.1:1", KEYS[C].public)))], "sender"),
    ],
)
def test_frames_that_are_not_ours_are_counted_and_the_hub_lives(messages: list[list[bytes]], reason: str) -> None:
    async def test(hub: RunningHub) -> None:
        async with clients([hub], "asker", PeerDown, Status, Log) as [asker]:
            with dealer_of(B, hub.endpoint) as dealer:
                for frames in messages:
                    dealer.send_multipart(frames)
                state = await described(asker, lambda state: f"dropped: {reason}" in state.counters)
            assert state.peers == ()
            await asker.publish(Status("m", "alive"))
            assert (await heard(asker, (PeerDown, Status)))[0] == Status("m", "alive")

    with running_hub(A, knows=(B,)) as hub:
        run(test(hub))


def test_bytes_that_are_no_zeromq_at_all_do_no_harm() -> None:
    async def test(hub: RunningHub) -> None:
        for port in (port_of(hub.endpoint), port_of(hub.join_endpoint)):
            for garbage in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(4096), b"\xff" * 64):
                with socket.create_connection(("127.0.0.1", port), 5.0) as raw:
                    raw.sendall(garbage)
        async with clients([hub], "asker") as [asker]:
            assert (await asker.request("hub", HubDescribe(), HubState, 5.0)).node_id == A

    with running_hub(A) as hub:
        run(test(hub))


def test_local_frames_that_are_no_message_are_counted() -> None:
    async def test(hub: RunningHub) -> None:
        async with clients([hub], "asker") as [asker]:
            with dealer_of(A, f"ipc://{hub.run_dir}/work") as dealer:
                for frames in ([b"hub"], [b"\xff"], [b"x/y", b"1"], [b"hub", b"1", b"2"]):
                    dealer.send_multipart(frames)
                await described(asker, lambda state: sum(state.counters.values()) >= 4)

    with running_hub(A) as hub:
        run(test(hub))


def test_an_end_point_that_is_none_is_refused_and_one_where_nobody_is_given_up() -> None:
    async def test(hub: RunningHub) -> None:
        async with clients([hub], "asker", PeerRefused) as [asker]:
            for endpoint in ("nonsense", "tcp://"):
                with pytest.raises(RequestError, match="is no end point"):
                    await asker.request("hub", PeerDial(endpoint), RequestDone, 5.0)
            await asker.request("hub", PeerDial("tcp://127.0.0.1:1"), RequestDone, 5.0)
            assert (await heard(asker, PeerRefused))[0].code == "silent"
            assert (await asker.request("hub", HubDescribe(), HubState, 5.0)).peers == ()

    with running_hub(A) as hub:
        run(test(hub))


def test_a_hub_describes_itself() -> None:
    async def test(hub: RunningHub) -> None:
        async with clients([hub], "asker", Status) as [asker]:
            state = await described(asker, lambda state: "status" in state.subscriptions)
            assert (state.node_id, state.name, state.endpoint) == (A, f"name of {A}", hub.endpoint)
            assert [(actor.name, actor.pid) for actor in state.actors] == [("hub", os.getpid()), ("asker", os.getpid())]
            assert kind_of(PeerDown) in state.subscriptions

    with running_hub(A) as hub:
        run(test(hub))


def test_a_taken_port_is_one_sentence() -> None:
    with running_hub(A) as hub, run_folder() as folder:
        port = port_of(hub.endpoint)
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use; choose another"):
            Hub(hub_config(folder, B, port=port))


def test_a_folder_that_is_not_there_is_one_sentence() -> None:
    with pytest.raises(OSError, match="cannot listen on ipc:///no/such/folder/"):
        Hub(hub_config(Path("/no/such/folder"), "a" * 16))


def test_two_hubs_that_want_the_usual_port_both_get_one() -> None:
    with run_folder() as one, run_folder() as other:
        first = Hub(hub_config(one, A, port=None))
        second = Hub(hub_config(other, B, port=None))
        assert (port_of(first.endpoint), port_of(first.join_endpoint)) != (
            port_of(second.endpoint),
            port_of(second.join_endpoint),
        )
        first.close()
        second.close()
