"""`exobus cluster ls`, `revoke`, `approve` and `rotate` as processes that ask a running hub."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from actors.data_dir import open_folder
from bus.messages import MembersGet, MembersState
from bus.net.keys import new_key_pair
from bus.peering.member_store import read_members, write_members
from cluster.join_code import JoinCode, new_join_code, parse_join_code
from cluster.membership import Member, Membership, MemberStatus
from cluster.roles import Role
from common.config import NodeConfig, write_config
from common.private_files import read_private, write_private
from tests.support.bus import WITHIN_S, RunningHub, client, described, hub_of, in_time, link
from tests.support.commands import cluster, exobus, printed, refused

HOME = new_join_code("home")


def member(name: str, status: MemberStatus = MemberStatus.APPROVED) -> Member:
    pair = new_key_pair()
    return Member(pair.node_id, name, pair.public.hex(), Role.MEMBER, status)


def test_ls_without_a_running_node_shows_stored_members(tmp_path: Path) -> None:
    assert "exobus cluster init" in printed(tmp_path, "ls")
    write_private(tmp_path / "join-code", HOME.text())
    assert printed(tmp_path, "ls") == "no node has joined cluster home yet\n"
    ada, bob = member("ada"), member("bob", MemberStatus.REVOKED)
    write_members(tmp_path, Membership("home", by_id={m.node_id: m for m in (ada, bob)}))
    rows = [line.split() for line in printed(tmp_path, "ls").splitlines()[1:]]
    assert rows == [
        ["ada", ada.node_id, "member", *MemberStatus.APPROVED.split()],
        ["bob", bob.node_id, "member", MemberStatus.REVOKED],
    ]
    state = json.loads(cluster(tmp_path, "ls", "--json").stdout)
    assert {known["name"]: known["status"] for known in state["members"]} == {
        "ada": MemberStatus.APPROVED,
        "bob": MemberStatus.REVOKED,
    }


@dataclass
class Here:
    """A node that consists of a hub only, in a folder where commands find it."""

    data_dir: Path
    hub: RunningHub

    @property
    def code(self) -> JoinCode:
        """The code that it keeps."""
        return parse_join_code(read_private(self.data_dir / "join-code"))


@contextmanager
def node(data_dir: Path, code: JoinCode | None = HOME) -> Iterator[Here]:
    folder = open_folder(data_dir)
    if code:
        write_private(data_dir / "join-code", code.text())
    config = NodeConfig(
        node_id=folder.node_id,
        name=data_dir.name,
        incarnation=1,
        run_dir=str(folder.run_dir),
        data_dir=str(data_dir),
        cache_dir="",
        cluster=code.name if code else "",
        code_file=str(data_dir / "join-code"),
    )
    write_config(config)
    try:
        with hub_of(config) as hub:
            yield Here(data_dir, hub)
    finally:
        folder.close()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Here, Here]]:
    """Run two linked members."""

    async def meet() -> None:
        async with client(ada.hub.run_dir, ada.hub.node_id, "test") as bus:
            await link(bus, bob.hub.join_endpoint)
            await described(bus, lambda state: len(state.peers) == 1, f"{bob.hub.node_id}/hub")

    with node(tmp_path / "ada") as ada, node(tmp_path / "bob") as bob:
        asyncio.run(meet())
        yield ada, bob


def linked(here: Here, count: int) -> None:
    """Wait until the hub has as many links."""

    async def look() -> None:
        async with client(here.hub.run_dir, here.hub.node_id, "test") as bus:
            await described(bus, lambda state: len(state.peers) == count)

    asyncio.run(look())


def statuses(here: Here) -> dict[str, MemberStatus]:
    async def ask() -> MembersState:
        async with client(here.hub.run_dir, here.hub.node_id, "test") as bus:
            return await bus.request("hub", MembersGet(), MembersState, WITHIN_S)

    return {known.name: known.status for known in asyncio.run(ask()).members}


def row(here: Here, name: str) -> list[str]:
    """Return the line of `ls` for a node."""
    return next(line.split() for line in printed(here.data_dir, "ls").splitlines() if line.startswith(name))


def test_ls_shows_linked_nodes_and_the_node_itself(pair: tuple[Here, Here]) -> None:
    ada, bob = pair
    assert row(ada, "bob") == ["bob", bob.hub.node_id, "member", *MemberStatus.APPROVED.split(), "linked"]
    assert row(ada, "ada") == ["ada", ada.hub.node_id, "member", "this", "node"]
    state = json.loads(cluster(ada.data_dir, "ls", "--json").stdout)
    assert (state["cluster"], state["linked"]) == ("home", [bob.hub.node_id])


@pytest.mark.parametrize("by_name", [True, False])
def test_revoke_ends_the_link_with_a_warning(pair: tuple[Here, Here], by_name: bool) -> None:
    ada, bob = pair
    text = printed(ada.data_dir, "revoke", "bob" if by_name else bob.hub.node_id)
    assert f"bob ({bob.hub.node_id}) is revoked in home" in text
    assert "exobus cluster rotate" in text
    for here in (ada, bob):
        linked(here, 0)
    assert row(ada, "bob") == ["bob", bob.hub.node_id, "member", MemberStatus.REVOKED]
    assert ada.code == HOME
    assert read_members(ada.data_dir, "home", strict=False).is_revoked(bob.hub.node_id)


def test_revoked_node_gets_no_rotated_code(pair: tuple[Here, Here]) -> None:
    ada, bob = pair
    assert "nodes that have it: this one" in printed(ada.data_dir, "revoke", "bob", "--rotate")
    assert ada.code != HOME
    assert bob.code == HOME


def test_approve_admits_a_revoked_node(pair: tuple[Here, Here]) -> None:
    ada, _ = pair
    printed(ada.data_dir, "revoke", "bob")
    assert "is approved in home" in printed(ada.data_dir, "approve", "bob")
    assert statuses(ada) == {"bob": MemberStatus.APPROVED}


def test_rotate_lists_nodes_with_and_without_the_code(pair: tuple[Here, Here]) -> None:
    ada, bob = pair
    with node(ada.data_dir.parent / "cyd") as cyd:

        async def meet() -> None:
            async with client(cyd.hub.run_dir, cyd.hub.node_id, "test") as bus:
                await link(bus, ada.hub.join_endpoint)

        asyncio.run(meet())
        linked(ada, 2)
    linked(ada, 1)
    text = printed(ada.data_dir, "rotate")
    assert "nodes that have it: this one, bob" in text
    assert "not linked now: cyd;" in text
    assert ada.code.text() not in text
    assert ada.code != HOME
    assert in_time(lambda: bob.code == ada.code)


def test_unknown_or_ambiguous_name_is_refused(tmp_path: Path) -> None:
    ada = tmp_path / "ada"
    ada.mkdir(mode=0o700)
    twins = [member("bob"), member("bob")]
    write_members(ada, Membership("home", by_id={twin.node_id: twin for twin in twins}))
    with node(ada) as here:
        assert "no node 'eve' is known here" in refused(ada, "revoke", "eve")
        sentence = refused(ada, "revoke", "bob")
        assert all(twin.node_id in sentence for twin in twins)
        assert set(statuses(here).values()) == {MemberStatus.APPROVED}


@pytest.mark.parametrize("role", [Role.GATEWAY, Role.OBSERVER])
@pytest.mark.parametrize("command", [("revoke", "bob"), ("approve", "bob"), ("rotate",)])
def test_gateway_and_observer_decide_nothing(tmp_path: Path, role: Role, command: tuple[str, ...]) -> None:
    eve, bob = tmp_path / "eve", member("bob")
    eve.mkdir(mode=0o700)
    write_members(eve, Membership("home", by_id={bob.node_id: bob}))
    with node(eve, HOME.invite(role)) as here:
        assert "only a member" in refused(eve, *command)
        assert statuses(here) == {"bob": MemberStatus.APPROVED}


@pytest.mark.parametrize("command", [("ls",), ("revoke", "bob"), ("rotate",)])
def test_standalone_node_shows_how_to_make_a_cluster(tmp_path: Path, command: tuple[str, ...]) -> None:
    with node(tmp_path / "ada", code=None):
        assert "exobus cluster init" in refused(tmp_path / "ada", *command)


def test_decision_needs_a_running_node(tmp_path: Path) -> None:
    done = cluster(tmp_path, "rotate")
    assert done.returncode == 3
    assert "start one with `exobus node`" in done.stderr


@pytest.mark.parametrize("command", [("rotate",), ("revoke", "x"), ("approve", "x")])
def test_decision_among_several_nodes_needs_a_name(
    tmp_path: Path, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with node(tmp_path / "ada", new_join_code("home")), node(tmp_path / "bob", new_join_code("office")):
        done = exobus("cluster", *command)
        assert done.returncode == 2
        assert "several nodes run here (ada, bob); choose one with --node" in done.stderr
        assert exobus("cluster", "ls", "--node", "bob").returncode == 0


def test_init_asks_to_stop_a_standalone_node(tmp_path: Path) -> None:
    with node(tmp_path, code=None):
        assert f"stop node {tmp_path.name} (Ctrl-C), then: " in printed(tmp_path, "init")
