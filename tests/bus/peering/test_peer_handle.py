"""A handle of another node, with two hubs."""

from __future__ import annotations

import asyncio

import pytest

from bus.client import BusClient, RequestError
from bus.messages import LinkProbe, PeerDown, PeerUp, RequestDone
from bus.peering.peer_handle import BusPeerHandle
from tests.support.bus import client, new_node, next_message, running_hub

A, B = new_node(), new_node()


def test_handle_connects_checks_and_disconnects() -> None:
    async def test() -> None:
        async with client(here.run_dir, A, "one", PeerUp, PeerDown) as bus, client(there.run_dir, B, "topology") as far:
            peer = BusPeerHandle(bus, there.join_endpoint)
            assert not peer.is_connected
            await peer.connect()
            up, _ = await next_message(bus, PeerUp)
            peer.linked(up.node_id, up.name)
            assert (peer.id, peer.description, peer.is_connected) == (B, f"name of {B}", True)
            answering = asyncio.create_task(answer_probe(far))
            assert 0 < await peer.health_check() < 2000
            await answering
            await peer.disconnect()
            down, _ = await next_message(bus, PeerDown)
            assert down == PeerDown(B, "it was dropped", f"name of {B}")
            assert not peer.is_connected

    async def answer_probe(bus: BusClient) -> None:
        _, envelope = await next_message(bus, LinkProbe)
        await bus.send(envelope.header.sender, RequestDone(), cause=envelope.header.id)

    with running_hub(A) as here, running_hub(B) as there:
        asyncio.run(test())


def test_bus_port_is_enough_to_disconnect() -> None:
    async def test() -> None:
        async with client(here.run_dir, A, "one", PeerUp, PeerDown) as bus:
            await BusPeerHandle(bus, there.join_endpoint).connect()
            up, _ = await next_message(bus, PeerUp)
            await BusPeerHandle(bus, up.endpoint).disconnect()
            assert (await next_message(bus, PeerDown))[0] == PeerDown(B, "it was dropped", f"name of {B}")

    with running_hub(A) as here, running_hub(B) as there:
        asyncio.run(test())


def test_health_check_of_unlinked_peer_fails() -> None:
    async def test() -> None:
        async with client(here.run_dir, A, "one") as bus:
            peer = BusPeerHandle(bus, "tcp://127.0.0.1:9")
            peer.linked(B, "gone")
            with pytest.raises(RequestError) as refused:
                await peer.health_check()
            assert refused.value.code == "undeliverable"

    with running_hub(A) as here:
        asyncio.run(test())
