"""`actors.node_actor`: what the nodes of each role may do. A real hub, with actors of the test."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from actors import device
from actors.node_actor import NodeActor
from bus.client import BusClient, RequestError
from bus.messages import InstanceEnsure, InstanceUnload, Reply, ShardLoad, TopologyGet, TopologyState, Work
from bus.process import CannotStart
from cluster.placement import placer_of
from cluster.roles import Role
from cluster.shard import whole
from cluster.topology import RecordNumber, Topology
from models.card import FolderSource, encode_card
from models.catalogue import DEFAULT_MODEL, Catalogue
from tests.support.actors import A, config_of, play, record
from tests.support.bus import WITHIN_S, client, described, running_hub

CARD = Catalogue.load().get(DEFAULT_MODEL)


async def asked(run_dir: Path, role: Role, work: Work, topology: Topology) -> RequestError:
    """Return the error of a node actor of this role for some work."""
    async with client(run_dir, A, "asker") as asker, client(run_dir, A, "topology") as graph:
        playing = asyncio.create_task(play(graph, {TopologyGet: lambda _: TopologyState(topology)}))
        actor = NodeActor(config_of(run_dir, role), BusClient(run_dir, A, "node"))
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


@pytest.mark.parametrize(
    ("role", "code", "sentence"),
    [(Role.GATEWAY, "forbidden", "is no member"), (Role.MEMBER, "model_not_found", "is not loaded")],
)
def test_unload_says_why_it_is_not_done(role: Role, code: str, sentence: str) -> None:
    error = why_not(role, InstanceUnload(CARD.id))
    assert (error.code, sentence in error.message) == (code, True)


@pytest.mark.parametrize("role", [Role.GATEWAY, Role.OBSERVER])
def test_only_members_hold_layers(role: Role) -> None:
    error = why_not(role, ShardLoad("i", 1, whole(CARD.id, CARD.n_layers), RecordNumber(1, 1)))
    assert error.code == "forbidden"
    assert f"has the role {role} and holds no layers" in error.message


def test_machine_without_an_engine_ends_the_node_actor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "PROBE", "tests.support.no_engine")

    async def main(run_dir: Path) -> None:
        async with client(run_dir, A, "topology") as graph:
            playing = asyncio.create_task(play(graph, {TopologyGet: lambda _: TopologyState(Topology())}))
            actor = NodeActor(config_of(run_dir, Role.MEMBER), BusClient(run_dir, A, "node"))
            with pytest.raises(CannotStart, match=r"^no engine works on this machine"):
                await asyncio.wait_for(actor.run(), WITHIN_S)
            playing.cancel()
            await asyncio.gather(playing, return_exceptions=True)

    with running_hub(A) as hub:
        asyncio.run(main(hub.run_dir))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"source": FolderSource(Path("/etc"))}, "names a folder, which only this node's own may"),
        ({"id": "other"}, "is of other"),
        ({"n_layers": 0}, "field n_layers must be positive"),
    ],
)
def test_card_of_another_node_is_checked(change: dict[str, Any], sentence: str) -> None:
    card = encode_card(msgspec.structs.replace(CARD, **change))
    load = ShardLoad("i", 1, whole(CARD.id, CARD.n_layers), RecordNumber(1, 1), card)
    error = why_not(Role.MEMBER, load)
    assert error.code == "forbidden"
    assert sentence in error.message


def test_own_model_with_other_files_is_refused(tmp_path: Path) -> None:
    load = ShardLoad("i", 1, whole(CARD.id, CARD.n_layers), RecordNumber(1, 1), "", "of other files")
    assert "differ from those of the node that places it" in why_not(Role.MEMBER, load).message
