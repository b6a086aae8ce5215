"""`bus.hub`: the messages that hubs on loopback deliver, return and drop."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bus.address import Address
from bus.client import RequestError
from bus.hub import Hub
from bus.messages import (
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
)
from bus.net.endpoints import port_of, with_key
from bus.wire import decode, encode, new_header
from cluster.failures import FailureCode
from common.config import NodeConfig
from tests.support.bus import (
    KEYS,
    RunningHub,
    client,
    clients,
    dealer_of,
    described,
    hub_config,
    hub_process,
    hubs,
    link,
    new_node,
    next_message,
    reply_to_probe,
    run,
    run_folder,
    running_hub,
    subscribed,
)

A, B, C = new_node(), new_node(), new_node()
WRONG_CODE = "a node tried to join cluster home with a wrong join code"


def test_work_and_reply_pass_within_a_node() -> None:
    async def test(hub: RunningHub) -> None:
        async with clients([hub], "asker") as [asker], clients([hub], "worker") as [worker]:
            replying = asyncio.create_task(reply_to_probe(worker))
            assert await asker.request("worker", LinkProbe(), RequestDone, 5.0) == RequestDone()
            await replying

    with running_hub(A) as hub:
        run(test(hub))


@pytest.mark.parametrize("to", ["worker", "/worker", f"{A}/worker"], ids=["bare", "no node", "whole"])
def test_address_without_node_reaches_own_actor(to: str) -> None:
    async def test(hub: RunningHub) -> None:
        async with clients([hub], "worker") as [worker]:
            with dealer_of(A, f"ipc://{hub.run_dir}/work") as dealer:
                dealer.send_multipart(_frames(to, LinkProbe(), sender=f"{A}/raw"))
                assert (await next_message(worker, LinkProbe))[1].to == Address(A, "worker")

    with running_hub(A) as hub:
        run(test(hub))


@pytest.mark.parametrize("sender", ["raw", f"{A}/raw"], ids=["bare", "whole"])
def test_address_without_node_reaches_own_hub(sender: str) -> None:
    with running_hub(A) as hub, dealer_of(A, f"ipc://{hub.run_dir}/work") as dealer:
        dealer.send_multipart(_frames("hub", HubDescribe(), sender=sender))
        assert dealer.poll(5000)
        reply = decode(dealer.recv_multipart())
        assert isinstance(reply.message, HubState)
        assert reply.to == Address(A, "raw")


def test_work_and_reply_pass_between_nodes() -> None:
    async def test(pair: list[RunningHub]) -> None:
        async with clients(pair, "one") as [asker, worker]:
            await link(asker, pair[1].join_endpoint)
            replying = asyncio.create_task(reply_to_probe(worker))
            assert await asker.request(f"{B}/one", LinkProbe(), RequestDone, 5.0) == RequestDone()
            await replying

    with hubs(A, B) as pair:
        run(test(pair))


@pytest.mark.parametrize(
    ("to", "sentence"),
    [("missing", f"no actor 'missing' answers on node name of {A}"), (f"{C}/node", f"node {C} is not linked")],
    ids=["actor", "node"],
)
def test_undeliverable_work_comes_back(to: str, sentence: str) -> None:
    async def test(hub: RunningHub) -> None:
        async with clients([hub], "asker") as [asker]:
            with pytest.raises(RequestError, match=sentence) as refused:
                await asker.request(to, LinkProbe(), RequestDone, 60.0)
            assert refused.value.code == "undeliverable"

    with running_hub(A) as hub:
        run(test(hub))


def test_undeliverable_work_comes_back_from_another_node() -> None:
    async def test(pair: list[RunningHub]) -> None:
        async with clients(pair[:1], "asker") as [asker]:
            await link(asker, pair[1].join_endpoint)
            with pytest.raises(RequestError, match=f"no actor 'missing' answers on node name of {B}"):
                await asker.request(f"{B}/missing", LinkProbe(), RequestDone, 60.0)

    with hubs(A, B) as pair:
        run(test(pair))


def test_work_for_a_stopped_actor_comes_back() -> None:
    async def test(hub: RunningHub) -> None:
        async with clients([hub], "asker") as [asker]:
            async with clients([hub], "worker"):
                pass
            with pytest.raises(RequestError) as refused:
                await asker.request("worker", LinkProbe(), RequestDone, 60.0)
            assert refused.value.code == "undeliverable"

    with running_hub(A) as hub:
        run(test(hub))


def test_killed_peer_is_down_within_a_second() -> None:
    async def test(hub: RunningHub, folder: Path) -> None:
        config = hub_config(folder, B, "victim")
        with hub_process(config) as victim:
            async with client(folder, B, "worker") as worker, clients([hub], "asker", PeerDown) as [asker]:
                await link(worker, hub.join_endpoint)
                await described(asker, lambda state: len(state.peers) == 1)
                waiting = asyncio.create_task(asker.request(f"{B}/worker", LinkProbe(), RequestDone, 60.0))
                await next_message(worker, LinkProbe)
                begun = asyncio.get_running_loop().time()
                victim.signal(signal.SIGKILL)
                lost, _ = await next_message(asker, PeerDown)
                assert asyncio.get_running_loop().time() - begun < 1.0
                assert lost.node_id == B
                with pytest.raises(RequestError, match="node victim is gone: the connection broke"):
                    await waiting

    with running_hub(A) as hub, run_folder() as folder:
        run(test(hub, folder))


def test_restarted_hub_finds_actors_and_peer_again() -> None:
    async def test(hub: RunningHub, folder: Path) -> None:
        config = hub_config(folder, B, "victim")
        with hub_process(config) as victim:
            async with client(folder, B, "worker") as worker, clients([hub], "asker", PeerUp, PeerDown) as [asker]:
                port = port_of((await link(worker, hub.join_endpoint)).endpoint)
                await next_message(asker, PeerUp)
                victim.signal(signal.SIGKILL)
                await next_message(asker, PeerDown)
                victim.process.wait(5.0)
                with hub_process(NodeConfig(**(_fields(config) | {"bus_port": port}))):
                    await described(worker, lambda state: any(actor.name == "worker" for actor in state.actors))
                    join_endpoint = (await described(worker, lambda state: bool(state.join_endpoint))).join_endpoint
                    await link(asker, join_endpoint)
                    await next_message(asker, PeerUp)
                    replying = asyncio.create_task(reply_to_probe(worker))
                    await asker.request(f"{B}/worker", LinkProbe(), RequestDone, 5.0)
                    await replying

    with running_hub(A) as hub, run_folder() as folder:
        run(test(hub, folder))


def _fields(config: NodeConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in config.__struct_fields__}


def test_stopping_hub_sends_bye() -> None:
    async def test(pair: list[RunningHub]) -> None:
        async with clients(pair[:1], "asker", PeerDown) as [asker]:
            await link(asker, pair[1].join_endpoint)
            await asyncio.to_thread(pair[1].stop)
            assert (await next_message(asker, PeerDown))[0] == PeerDown(B, "it left", f"name of {B}")

    with hubs(A, B) as pair:
        run(test(pair))


def test_peer_with_two_addresses_is_linked_once() -> None:
    async def test(pair: list[RunningHub]) -> None:
        async with clients(pair, "one", PeerUp, PeerDown, Status) as [first, second]:
            await link(first, pair[1].join_endpoint)
            await next_message(first, PeerUp)
            await first.request(
                "hub", PeerDial(pair[1].join_endpoint.replace("127.0.0.1", "localhost")), RequestDone, 5.0
            )
            await link(second, pair[0].join_endpoint)
            with pytest.raises(TimeoutError):
                await next_message(first, (PeerUp, PeerDown), within_s=0.5)
            assert len((await first.request("hub", HubDescribe(), HubState, 5.0)).peers) == 1

    with hubs(A, B) as pair:
        run(test(pair))


def test_hubs_of_two_clusters_do_not_link() -> None:
    async def test(home: RunningHub, work: RunningHub) -> None:
        async with clients([home], "one", PeerRefused) as [host], clients([work], "one", PeerRefused) as [guest]:
            await guest.request("hub", PeerDial(home.join_endpoint), RequestDone, 5.0)
            there, _ = await next_message(guest, PeerRefused, within_s=3.0)
            here, _ = await next_message(host, PeerRefused, within_s=3.0)
            assert there.message.startswith("wrong join code for cluster work: the join port at")
            assert here == PeerRefused("", FailureCode.WRONG_CODE, WRONG_CODE)
            assert (await host.request("hub", HubDescribe(), HubState, 5.0)).peers == ()

    with running_hub(A) as home, running_hub(B, cluster="work") as work:
        run(test(home, work))


def test_work_is_tapped_for_subscribers_only() -> None:
    async def test(hub: RunningHub) -> None:
        async with clients([hub], "asker") as [asker], clients([hub], "worker") as [worker]:
            async with clients([hub], "inspector", "tap.") as [inspector]:
                await subscribed(asker, "hub", "tap.")
                replying = asyncio.create_task(reply_to_probe(worker))
                await asker.request("worker", LinkProbe(), RequestDone, 5.0)
                await replying
                _, envelope = await next_message(inspector, LinkProbe)
                assert (envelope.to, envelope.header.sender) == ("tap.link.probe", f"{A}/asker")
            await described(asker, lambda state: "tap." not in state.subscriptions)

    with running_hub(A) as hub:
        run(test(hub))


def _frames(to: str, message: Message, sender: str = f"{B}/node") -> list[bytes]:
    return encode(to, new_header(message, sender, sequence=1), message)


def _hello(**changes: Any) -> LinkHello:
    own = LinkHello(B, "impostor", 1, with_key("tcp://127.0.0.1:1", KEYS[B].public))
    return msgspec.structs.replace(own, **changes)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([[b"junk"]], "frames"),
        ([[b"/hub"]], "frames"),
        ([[b"\xff/hub", *_frames("", Status("m", "t"))[1:]]], "address"),
        ([[b"/hub", b"\xc1", b"\xc1"]], "header"),
        ([_frames(f"{C}/asker", LinkProbe())], "misdirected"),
        ([_frames(f"{C}/hub", HubDescribe())], "misdirected"),
        ([_frames("peer.down", PeerDown(C, "invented"))], "not allowed"),
        ([_frames("log", Status("m", "under a wrong topic"))], "misdirected"),
        ([_frames("status", Status("m", "t"), sender=f"{C}/node")], "sender"),
        ([_frames(f"{A}/asker", LinkProbe(), sender=f"{C}/node")], "sender"),
        ([_frames("/hub", HubDescribe(), sender=f"{A}/node")], "sender"),
        ([_frames("/hub", _hello(node_id=C))], "sender"),
        ([_frames("/hub", _hello(endpoint="tcp://127.0.0.1:1"))], "sender"),
        ([_frames("/hub", _hello(endpoint=with_key("tcp://127.0.0.1:1", KEYS[C].public)))], "sender"),
    ],
)
def test_invalid_frames_of_a_peer_are_counted(messages: list[list[bytes]], reason: str) -> None:
    async def test(hub: RunningHub) -> None:
        async with clients([hub], "asker", PeerDown, Status, Log) as [asker]:
            with dealer_of(B, hub.endpoint) as dealer:
                for frames in messages:
                    dealer.send_multipart(frames)
                state = await described(asker, lambda state: f"dropped: {reason}" in state.counters)
            assert state.peers == ()
            await asker.publish(Status("m", "alive"))
            assert (await next_message(asker, (PeerDown, Status)))[0] == Status("m", "alive")

    with running_hub(A, knows=(B,)) as hub:
        run(test(hub))


def test_bytes_other_than_zmtp_are_ignored() -> None:
    async def test(hub: RunningHub) -> None:
        for port in (port_of(hub.endpoint), port_of(hub.join_endpoint)):
            for garbage in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(4096), b"\xff" * 64):
                with socket.create_connection(("127.0.0.1", port), 5.0) as raw:
                    raw.sendall(garbage)
        async with clients([hub], "asker") as [asker]:
            assert (await asker.request("hub", HubDescribe(), HubState, 5.0)).node_id == A

    with running_hub(A) as hub:
        run(test(hub))


def test_invalid_frames_of_an_actor_are_counted() -> None:
    async def test(hub: RunningHub) -> None:
        async with clients([hub], "asker") as [asker]:
            with dealer_of(A, f"ipc://{hub.run_dir}/work") as dealer:
                for frames in ([b"hub"], [b"\xff"], [b"x/y", b"1"], [b"hub", b"1", b"2"]):
                    dealer.send_multipart(frames)
                await described(asker, lambda state: sum(state.counters.values()) >= 4)

    with running_hub(A) as hub:
        run(test(hub))


def test_invalid_or_silent_endpoint_is_reported() -> None:
    async def test(hub: RunningHub) -> None:
        async with clients([hub], "asker", PeerRefused) as [asker]:
            for endpoint in ("nonsense", "tcp://"):
                with pytest.raises(RequestError, match="is no endpoint"):
                    await asker.request("hub", PeerDial(endpoint), RequestDone, 5.0)
            await asker.request("hub", PeerDial("tcp://127.0.0.1:1"), RequestDone, 5.0)
            assert (await next_message(asker, PeerRefused))[0].code == "silent"
            assert (await asker.request("hub", HubDescribe(), HubState, 5.0)).peers == ()

    with running_hub(A) as hub:
        run(test(hub))


def test_taken_port_is_one_sentence() -> None:
    with running_hub(A) as hub, run_folder() as folder:
        port = port_of(hub.endpoint)
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use; choose another"):
            Hub(hub_config(folder, B, port=port))


def test_missing_folder_is_one_sentence() -> None:
    with pytest.raises(OSError, match="cannot listen on ipc:///no/such/folder/"):
        Hub(hub_config(Path("/no/such/folder"), "a" * 16))


def test_hub_that_cannot_bind_everything_closes_everything() -> None:
    with run_folder() as folder:
        long = folder / ("x" * (103 - len(f"{folder}//work")))  # long enough for one endpoint, too long for another
        long.mkdir()
        with pytest.raises(OSError, match=r"cannot listen on ipc://.*/facts-(in|out): File name too long"):
            Hub(hub_config(long, A))
    assert "zap" not in [thread.name for thread in threading.enumerate()]


def test_two_hubs_share_the_usual_ports() -> None:
    with run_folder() as one, run_folder() as other:
        first = Hub(hub_config(one, A, port=None))
        second = Hub(hub_config(other, B, port=None))
        assert (port_of(first.endpoint), port_of(first.join_endpoint)) != (
            port_of(second.endpoint),
            port_of(second.join_endpoint),
        )
        first.close()
        second.close()
