"""What the node actor and the topology actor of a member, a gateway and an observer do.

A real hub, with actors of the test.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from actors.node_actor import NodeActor
from actors.topology_actor import MAX_INSTANCES, TopologyActor, as_seen_from
from bus.client import BusClient, RequestError
from bus.messages import (
    InstanceEnsure,
    InstanceUp,
    NodeRecorded,
    PeerDown,
    PeerUp,
    Reply,
    ShardLoad,
    TopologyGet,
    TopologyState,
    Work,
)
from bus.wire import Envelope, new_header
from cluster.join_code import new_join_code
from cluster.placement import Instance, placer_of
from cluster.roles import Role
from cluster.shard import whole
from cluster.topology import NodeRecord, Topology
from common.config import NodeConfig
from common.private_files import write_private
from models.catalogue import DEFAULT_MODEL, Catalogue
from tests.actors.test_node_actor import play
from tests.support.bus import WITHIN_S, client, described, new_node, running_hub

A = "a" * 16
CARD = Catalogue.load().get(DEFAULT_MODEL)
HOME = new_join_code("home")


def config(run_dir: Path, role: Role) -> NodeConfig:
    """Return the settings of node A with a code of this role and an engine that needs no measuring."""
    code_file = run_dir / f"{role}-code"
    write_private(code_file, HOME.invite(role).text())
    named = {"node_id": A, "name": "ada", "incarnation": 1, "engine": "numpy", "memory": 1 << 30}
    folders = dict.fromkeys(("run_dir", "data_dir", "cache_dir"), str(run_dir))
    return msgspec.convert({**named, **folders, "cluster": "home", "code_file": str(code_file)}, NodeConfig)


async def asked(run_dir: Path, role: Role, work: Work, topology: Topology) -> RequestError:
    """Return the error of a node actor of this role for some work."""
    async with client(run_dir, A, "asker") as asker, client(run_dir, A, "topology") as graph:
        playing = asyncio.create_task(play(graph, {TopologyGet: lambda _: TopologyState(topology)}))
        actor = NodeActor(config(run_dir, role), BusClient(run_dir, A, "node"))
        running = asyncio.create_task(actor.run())
        try:
            await described(asker, lambda state: "node" in [known.name for known in state.actors])
            with pytest.raises(RequestError) as refused:
                await asker.request("node", work, Reply, WITHIN_S)
        finally:
            actor.stop()
            await asyncio.wait_for(running, WITHIN_S)
            playing.cancel()
            await asyncio.gather(playing, return_exceptions=True)
        return refused.value


def why_not(role: Role, work: Work, topology: Topology | None = None) -> RequestError:
    with running_hub(A) as hub:
        return asyncio.run(asked(hub.run_dir, role, work, topology or Topology()))


def test_observer_may_not_request_an_instance() -> None:
    error = why_not(Role.OBSERVER, InstanceEnsure(CARD.id), Topology().with_node(record("b" * 16)))
    assert error.code == "forbidden"
    assert "chat through another" in error.message


def test_gateway_asks_a_member_to_place() -> None:
    other = next(f"{n:016x}" for n in range(100) if placer_of(CARD.id, {A, f"{n:016x}"}) == A)
    error = why_not(Role.GATEWAY, InstanceEnsure(CARD.id), Topology().with_node(record(other)))
    assert f"node {other} is not linked" in error.message  # so it was asked


def test_gateway_without_a_member_reports_it() -> None:
    error = why_not(Role.GATEWAY, InstanceEnsure(CARD.id))
    assert (error.code, "no member of cluster home is linked" in error.message) == ("no_member", True)


@pytest.mark.parametrize("role", [Role.GATEWAY, Role.OBSERVER])
def test_only_members_hold_layers(role: Role) -> None:
    error = why_not(role, ShardLoad("i", 1, whole(CARD.id, CARD.n_layers)))
    assert error.code == "forbidden"
    assert f"has the role {role} and holds no layers" in error.message


# -- who is in the graph


def record(node_id: str) -> NodeRecord:
    return NodeRecord(node_id, f"name of {node_id}", 1, 1)


def said(node_id: str, of: str | None = None) -> tuple[NodeRecorded, Envelope]:
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
            actor = TopologyActor(config(run_dir, Role.MEMBER), bus)
            await actor.recorded(*said(other))
            assert await graph(actor) == set()  # not linked
            await actor.peer_up(*up(other, role))
            await actor.recorded(*said(other, of="c" * 16))
            assert await graph(actor) == set()  # not about itself
            await actor.recorded(*said(other))
            assert await graph(actor) == ({other} if counts else set())
            down = PeerDown(other, "it left")
            await actor.peer_down(down, Envelope("peer.down", new_header(down, f"{A}/hub"), down))
            await actor.recorded(*said(other))
            assert await graph(actor) == set()  # not linked any more

    with running_hub(A) as hub:
        asyncio.run(test(hub.run_dir))


@pytest.mark.parametrize(("role", "counts"), [(Role.MEMBER, True), (Role.GATEWAY, False), (Role.OBSERVER, False)])
def test_only_members_are_in_their_own_graph(role: Role, counts: bool) -> None:
    async def test(run_dir: Path) -> None:
        async with client(run_dir, A, "topology") as bus:
            actor = TopologyActor(config(run_dir, role), bus)
            await actor.recorded(*said(A))
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
def test_loopback_api_is_shown_on_its_own_machine_only(machine: str, api: str, shown: bool) -> None:
    record = NodeRecord("b" * 16, "bob", 1, 1, api=api, machine=machine)
    assert as_seen_from("ours", record).api == (api if shown else "")


def test_repeated_instances_count_once_and_are_bounded() -> None:
    async def test(run_dir: Path) -> None:
        async with client(run_dir, A, "topology") as bus:
            actor = TopologyActor(config(run_dir, Role.MEMBER), bus)
            for number in (0, *range(MAX_INSTANCES + 1)):
                up = InstanceUp(Instance(f"i{number}", DEFAULT_MODEL, 1, (), A))
                await actor.instance_up(up, Envelope("instance.up", new_header(up, f"{A}/node"), up))
            message = TopologyGet()
            state = await actor.get(message, Envelope(f"{A}/topology", new_header(message, f"{A}/node"), message))
            assert [i.instance_id for i in state.instances] == [f"i{n}" for n in range(1, MAX_INSTANCES + 1)]

    with running_hub(A) as hub:
        asyncio.run(test(hub.run_dir))
