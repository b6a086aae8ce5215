"""`actors.topology_actor`: which nodes and instances are in the graph."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from actors.topology_actor import TopologyActor, as_seen_from
from bus.messages import InstanceDown, InstanceUp, NodeRecorded, PeerDown, PeerUp, TopologyGet
from bus.wire import Envelope, new_header
from cluster.placement import Instance, PlacedStage
from cluster.roles import Role
from cluster.room import InstanceUse, StageUse
from cluster.shard import Shard
from cluster.topology import NodeRecord, RecordNumber
from models.catalogue import DEFAULT_MODEL
from tests.support.actors import A, config_of, record
from tests.support.bus import client, new_node, running_hub


def record_of(node_id: str, of: str | None = None) -> tuple[NodeRecorded, Envelope]:
    """Return a record, of the node itself if no other is named, with the envelope in which the node sent it."""
    message = NodeRecorded(record(of or node_id))
    return message, Envelope("node.record", new_header(message, f"{node_id}/node"), message)


def up(node_id: str, role: Role) -> tuple[PeerUp, Envelope]:
    message = PeerUp(node_id, "a node", "tcp://127.0.0.1:1", role)
    return message, Envelope("peer.up", new_header(message, f"{A}/hub"), message)


async def graph(actor: TopologyActor) -> set[str]:
    message = TopologyGet()
    state = await actor.get(message, Envelope(f"{A}/topology", new_header(message, f"{A}/node"), message))
    return set(state.topology.node_ids)


@pytest.mark.parametrize(("role", "counts"), [(Role.MEMBER, True), (Role.GATEWAY, False), (Role.OBSERVER, False)])
def test_only_records_of_linked_members_count(role: Role, counts: bool) -> None:
    other = new_node()

    async def test(run_dir: Path) -> None:
        async with client(run_dir, A, "topology") as bus:
            actor = TopologyActor(config_of(run_dir, Role.MEMBER), bus)
            await actor.recorded(*record_of(other))
            assert await graph(actor) == set()  # not linked
            await actor.peer_up(*up(other, role))
            await actor.recorded(*record_of(other, of="c" * 16))
            assert await graph(actor) == set()  # not about itself
            await actor.recorded(*record_of(other))
            assert await graph(actor) == ({other} if counts else set())
            down = PeerDown(other, "it left")
            await actor.peer_down(down, Envelope("peer.down", new_header(down, f"{A}/hub"), down))
            await actor.recorded(*record_of(other))
            assert await graph(actor) == set()  # not linked any more

    with running_hub(A) as hub:
        asyncio.run(test(hub.run_dir))


@pytest.mark.parametrize(("role", "counts"), [(Role.MEMBER, True), (Role.GATEWAY, False), (Role.OBSERVER, False)])
def test_only_members_are_in_their_own_graph(role: Role, counts: bool) -> None:
    async def test(run_dir: Path) -> None:
        async with client(run_dir, A, "topology") as bus:
            actor = TopologyActor(config_of(run_dir, role), bus)
            await actor.recorded(*record_of(A))
            assert await graph(actor) == ({A} if counts else set())

    with running_hub(A) as hub:
        asyncio.run(test(hub.run_dir))


@pytest.mark.parametrize(
    ("machine", "api", "shown"),
    [
        ("ours", "http://127.0.0.1:52415", True),
        ("ours", "http://[::1]:52415", True),
        ("another", "http://127.0.0.1:52415", False),
        ("another", "http://[::1]:52415", False),
        ("another", "http://192.168.1.11:52415", True),
        ("another", "", True),
    ],
)
def test_loopback_api_is_shown_locally_only(machine: str, api: str, shown: bool) -> None:
    record = NodeRecord("b" * 16, "bob", 1, 1, api=api, machine=machine)
    assert as_seen_from("ours", record).api == (api if shown else "")


def test_instances_stand_by_announcement_and_record() -> None:
    async def test(run_dir: Path) -> None:
        async with client(run_dir, A, "topology") as bus:
            actor = TopologyActor(config_of(run_dir, Role.MEMBER), bus)
            placed = Instance("i", DEFAULT_MODEL, 1, (PlacedStage(A, Shard(DEFAULT_MODEL, 0, 30, 30)),), A)
            up = InstanceUp(placed, (RecordNumber(1, 2),))
            await actor.instance_up(up, Envelope("instance.up", new_header(up, f"{A}/node"), up))
            assert await standing(actor) == (placed,)
            await actor.recorded(*record_of(A))  # the record of number (1, 1)
            assert await standing(actor) == (placed,), "it was made before the stage joined"
            down = InstanceDown("i", 1, "the engine ended")
            await actor.instance_down(down, Envelope("instance.down", new_header(down, f"{A}/node"), down))
            assert await standing(actor) == ()

    with running_hub(A) as hub:
        asyncio.run(test(hub.run_dir))


def test_state_says_how_instances_are_used() -> None:
    async def test(run_dir: Path) -> None:
        async with client(run_dir, A, "topology") as bus:
            actor = TopologyActor(config_of(run_dir, Role.MEMBER), bus)
            placed = Instance("i", DEFAULT_MODEL, 1, (PlacedStage(A, Shard(DEFAULT_MODEL, 0, 30, 30)),), A)
            listed = NodeRecorded(record(A), (placed,), uses=(StageUse("i", 7, 100),))
            await actor.recorded(listed, Envelope("node.record", new_header(listed, f"{A}/node"), listed))
            message = TopologyGet()
            state = await actor.get(message, Envelope(f"{A}/topology", new_header(message, f"{A}/node"), message))
            assert (state.instances, state.uses) == ((placed,), (InstanceUse(7, (100,)),))

    with running_hub(A) as hub:
        asyncio.run(test(hub.run_dir))


async def standing(actor: TopologyActor) -> tuple[Instance, ...]:
    message = TopologyGet()
    return (await actor.get(message, Envelope(f"{A}/topology", new_header(message, f"{A}/node"), message))).instances
