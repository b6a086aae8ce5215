"""The discovery actor with real hubs and real beacons on loopback."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import psutil
import pytest

from actors.discovery_actor import DiscoveryActor
from bus.client import BusClient
from bus.messages import ClusterChanged, PeerAuthenticated, PeerRefused, PeerUp
from bus.process import CannotStart
from cluster.join_code import new_join_code
from cluster.roles import Role
from common.private_files import write_private
from discovery.beacon import Beacon
from discovery.udp import UdpDiscovery
from tests.support.bus import (
    WITHIN_S,
    RunningHub,
    client,
    code_of,
    described,
    hub_config,
    hub_of,
    link,
    new_node,
    next_message,
    run_folder,
    running_hub,
)
from tests.support.network.beacons import next_beacon
from tests.support.nodes import free_udp_port

A, B = new_node(), new_node()
OTHER_CODE = new_join_code("home")


def actor_of(hub: RunningHub, port: int, **settings: object) -> DiscoveryActor:
    """Make the discovery actor of a hub's node; it does not run yet."""
    config = msgspec.structs.replace(hub.hub._config, discovery_port=port, name="ada", **settings)
    return DiscoveryActor(config, BusClient(hub.run_dir, hub.node_id, "discovery"))


@asynccontextmanager
async def discovery(hub: RunningHub, port: int, **settings: object) -> AsyncIterator[DiscoveryActor]:
    actor = actor_of(hub, port, **settings)
    running = asyncio.create_task(actor.run())
    try:
        yield actor
        assert not running.done(), running.exception()
    finally:
        actor.stop()
        await asyncio.wait_for(running, WITHIN_S)


@asynccontextmanager
async def observer(port: int) -> AsyncIterator[UdpDiscovery]:
    """Receive the beacons of a cluster without sending any."""
    udp = UdpDiscovery("127.0.0.1", port, code_of("home").keys())
    await udp.start()
    try:
        yield udp
    finally:
        await udp.stop()


def test_nodes_that_receive_beacons_are_linked() -> None:
    async def test() -> None:
        port = free_udp_port()
        async with client(one.run_dir, A, "test", PeerUp) as bus, discovery(one, port), discovery(two, port):
            assert (await next_message(bus, PeerUp))[0].node_id == B

    with running_hub(A) as one, running_hub(B) as two:
        asyncio.run(test())


def test_member_announces_its_join_port_without_the_key() -> None:
    async def test() -> None:
        port = free_udp_port()
        async with observer(port) as udp, discovery(one, port):
            found = await next_beacon(udp, bool)
            assert found == Beacon(A, "ada", 1, found.counter, one.join_endpoint)
            assert "#" not in found.join_endpoint

    with running_hub(A) as one:
        asyncio.run(test())


@pytest.mark.parametrize("role", [Role.GATEWAY, Role.OBSERVER])
def test_other_roles_find_members_and_send_no_beacons(role: Role) -> None:
    async def test() -> None:
        port = free_udp_port()
        async with observer(port) as udp, client(one.run_dir, A, "test", PeerUp) as bus, discovery(one, port):
            async with discovery(two, port):
                assert (await next_message(bus, PeerUp))[0].node_id == B
            assert (await next_beacon(udp, lambda found: found.leaving)).node_id == B
            assert not udp.dropped
            assert udp._inbox.empty()

    with running_hub(A, role=role) as one, running_hub(B) as two:
        asyncio.run(test())


def test_standalone_node_opens_no_port_and_dials_none() -> None:
    async def test() -> None:
        port = free_udp_port()
        async with (
            client(alone.run_dir, alone.node_id, "test") as bus,
            discovery(alone, port, peers=("127.0.0.1:9",)) as actor,
        ):
            await described(bus, lambda state: "discovery" in [known.name for known in state.actors])
            assert port not in [found.laddr.port for found in psutil.Process().net_connections("udp")]
            assert not actor._candidates.candidates

    with running_hub("a" * 16) as alone:
        asyncio.run(test())


def test_pinned_join_ports_are_dialled_without_beacons() -> None:
    async def test() -> None:
        async with client(one.run_dir, A, "test", PeerAuthenticated, PeerUp) as bus:
            peer = two.join_endpoint.removeprefix("tcp://")
            async with discovery(one, 0, peers=(peer, one.join_endpoint.removeprefix("tcp://"))) as actor:
                met = {(await next_message(bus, PeerAuthenticated))[0].node_id for _ in range(2)}
                assert met == {A, B}
                await next_message(bus, PeerUp)
                await described(bus, lambda _: actor._candidates.candidates[two.join_endpoint].node_id == B)
                await described(
                    bus, lambda _: actor._candidates.candidates[one.join_endpoint].dial_at > time.monotonic() + 600
                )

    with running_hub(A) as one, running_hub(B) as two:
        asyncio.run(test())


def test_undiallable_port_does_not_stop_other_dials() -> None:
    async def test() -> None:
        async with client(one.run_dir, A, "test", PeerUp) as bus:
            actor = actor_of(one, 0, peers=(two.join_endpoint.removeprefix("tcp://"),))
            actor._candidates = actor._candidates.pin("nonsense://")
            running = asyncio.create_task(actor.run())
            await next_message(bus, PeerUp)
            actor.stop()
            await asyncio.wait_for(running, WITHIN_S)

    with running_hub(A) as one, running_hub(B) as two:
        asyncio.run(test())


def test_port_of_another_code_is_dialled_again_later() -> None:
    async def test() -> None:
        async with (
            client(one.run_dir, A, "test", PeerRefused) as bus,
            discovery(one, 0, peers=(two.join_endpoint.removeprefix("tcp://"),)) as actor,
        ):
            refused, _ = await next_message(bus, PeerRefused)
            assert (refused.endpoint, refused.code) == (two.join_endpoint, "wrong_code")
            await described(
                bus, lambda _: actor._candidates.candidates[two.join_endpoint].dial_at > time.monotonic() + 20
            )

    with running_hub(A) as one, running_hub(B, code=OTHER_CODE) as two:
        asyncio.run(test())


def test_different_join_codes_are_reported_without_a_dial() -> None:
    async def test() -> None:
        port = free_udp_port()
        async with (
            client(one.run_dir, A, "test", PeerRefused) as first,
            client(two.run_dir, B, "test", PeerRefused) as second,
            discovery(one, port) as actor,
            discovery(two, port) as other,
        ):
            for bus in (first, second):
                refused, envelope = await next_message(bus, PeerRefused)
                assert envelope.header.sender.endswith("/discovery")
                assert (refused.endpoint, refused.code) == ("", "wrong_code")
                assert refused.message.startswith("wrong join code for cluster home: ")
                assert "127.0.0.1" in refused.message
            assert not actor._candidates.candidates
            assert not other._candidates.candidates

    with running_hub(A) as one, running_hub(B, code=OTHER_CODE) as two:
        asyncio.run(test())


def test_beacons_use_the_new_code_after_a_rotation() -> None:
    async def test() -> None:
        port = free_udp_port()
        async with observer(port) as udp, client(one.run_dir, A, "test") as bus, discovery(one, port):
            await next_beacon(udp, bool)
            write_private(one.hub._config.code_path, OTHER_CODE.text())
            udp.use_keys(OTHER_CODE.keys())
            await bus.publish(ClusterChanged())
            await next_beacon(udp, bool)

    with running_hub(A) as one:
        asyncio.run(test())


def test_restarted_hub_is_announced_and_dials_its_peers() -> None:
    async def test() -> None:
        port = free_udp_port()
        with running_hub(B) as other, run_folder() as run_dir:
            config = hub_config(run_dir, A)
            async with observer(port) as udp:
                with hub_of(config) as first:
                    running = asyncio.create_task(
                        (actor := actor_of(first, port, peers=(other.join_endpoint.removeprefix("tcp://"),))).run()
                    )
                    await next_beacon(udp, lambda found: found.join_endpoint == first.join_endpoint)
                    async with client(run_dir, A, "test") as bus:
                        await described(bus, lambda _: B in actor._candidates.links)
                    await asyncio.to_thread(first.stop)
                with hub_of(config) as second:
                    await next_beacon(udp, lambda found: found.join_endpoint == second.join_endpoint)
                    async with client(run_dir, A, "test") as bus:
                        await described(bus, lambda state: [peer.node_id for peer in state.peers] == [B])
                    actor.stop()
                    await asyncio.wait_for(running, WITHIN_S)

    asyncio.run(test())


def test_existing_links_are_known_after_a_restart() -> None:
    async def test() -> None:
        async with client(one.run_dir, A, "test") as bus:
            await link(bus, two.join_endpoint)
            async with discovery(one, 0) as actor:
                await described(bus, lambda _: set(actor._candidates.links) == {B})

    with running_hub(A) as one, running_hub(B) as two:
        asyncio.run(test())


def test_unreadable_join_code_ends_the_actor() -> None:
    async def test() -> None:
        one.hub._config.code_path.chmod(0o644)
        with pytest.raises(CannotStart, match=r"can be read by others; make it yours alone with: chmod 600"):
            await actor_of(one, 0).run()

    with running_hub(A) as one:
        asyncio.run(test())
