"""`exobus cluster …` as processes: the join code on this machine, and what the owner decides through a running hub."""

from __future__ import annotations

import asyncio
import json
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer

from actors.data_dir import open_folder
from bus.hub import Hub
from bus.messages import MembersGet, MembersState
from bus.net.keys import new_key_pair
from bus.peering.member_store import read_members, write_members
from cli import cluster_members
from cluster.join_code import JoinCode, new_join_code, parse_join_code
from cluster.membership import Member, Membership, MemberStatus
from cluster.roles import Role
from common.config import NodeConfig, write_config
from common.private_files import read_private, write_private
from tests.support.bus import WITHIN_S, RunningHub, client, described, in_time, link, serving
from tests.support.nodes import clean_environment
from tests.support.ring import ROOT

HOME = new_join_code("home")


def cluster(data_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, run to its end; it sees no other node than that in `data_dir`."""
    return subprocess.run(
        [sys.executable, "-m", "cli", "cluster", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        env={**clean_environment(), "EXOBUS_DATA_DIR": str(data_dir), "COLUMNS": "200"},
    )


def said(data_dir: Path, *arguments: str) -> str:
    """What the command prints, and what it says besides, where it does what it was asked."""
    done = cluster(data_dir, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def refused(data_dir: Path, *arguments: str) -> str:
    """The one sentence with which the command ends, having printed nothing."""
    done = cluster(data_dir, *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


def member(name: str, standing: MemberStatus = MemberStatus.APPROVED) -> Member:
    pair = new_key_pair()
    return Member(pair.node_id, name, pair.public.hex(), Role.MEMBER, standing)


# -- the join code on this machine


def test_init_makes_a_code_that_only_its_user_can_read_and_says_what_to_type_next(tmp_path: Path) -> None:
    done = cluster(tmp_path, "init")
    code = parse_join_code(done.stdout)
    assert (code.name, code.role) == ("home", Role.MEMBER)
    assert read_private(tmp_path / "join-code") == done.stdout.strip()
    assert stat.S_IMODE((tmp_path / "join-code").stat().st_mode) == 0o600
    assert "exobus node --host auto --join CODE" in done.stderr
    assert code.text() not in done.stderr


def test_init_overwrites_no_code(tmp_path: Path) -> None:
    said(tmp_path, "init")
    before = read_private(tmp_path / "join-code")
    sentence = refused(tmp_path, "init", "--name", "office")
    assert f"{tmp_path / 'join-code'} holds the join code of cluster home already" in sentence
    assert read_private(tmp_path / "join-code") == before


def test_init_refuses_what_is_no_name(tmp_path: Path) -> None:
    done = cluster(tmp_path, "init", "--name", "My Home")
    assert done.returncode == 2
    assert "small letters" in done.stderr
    assert not (tmp_path / "join-code").exists()


@pytest.mark.parametrize("role", list(Role))
def test_invite_prints_the_code_of_a_role_and_what_it_allows(tmp_path: Path, role: Role) -> None:
    write_private(tmp_path / "join-code", HOME.text())
    done = cluster(tmp_path, "invite", "--role", role)
    assert parse_join_code(done.stdout) == HOME.invite(role)
    assert f"join home as a{'n' * (role is Role.OBSERVER)} {role}: " in done.stderr


def test_invite_needs_a_members_code(tmp_path: Path) -> None:
    assert "exobus cluster init" in refused(tmp_path, "invite")
    write_private(tmp_path / "join-code", HOME.invite(Role.OBSERVER).text())
    assert "ask a member of home" in refused(tmp_path, "invite")
    (tmp_path / "join-code").chmod(0o644)
    assert "chmod 600" in refused(tmp_path, "invite")


def test_ls_without_a_running_node_shows_what_was_kept(tmp_path: Path) -> None:
    assert "exobus cluster init" in said(tmp_path, "ls")
    ada, bob = member("ada"), member("bob", MemberStatus.REVOKED)
    write_private(tmp_path / "join-code", HOME.text())
    write_members(tmp_path, Membership("home", by_id={m.node_id: m for m in (ada, bob)}))
    rows = [line.split() for line in said(tmp_path, "ls").splitlines()[1:]]
    assert rows == [["ada", ada.node_id, "member", "approved"], ["bob", bob.node_id, "member", "revoked"]]
    state = json.loads(cluster(tmp_path, "ls", "--json").stdout)
    assert {known["name"]: known["status"] for known in state["members"]} == {"ada": "approved", "bob": "revoked"}


# -- through a running hub


@dataclass
class Here:
    """A node that is nothing but a hub, where commands find it."""

    data_dir: Path
    hub: RunningHub

    @property
    def code(self) -> JoinCode:
        """What it has kept."""
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
        with serving(Hub(config), folder.run_dir) as hub:
            yield Here(data_dir, hub)
    finally:
        folder.close()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Here, Here]]:
    """Two linked members."""

    async def meet() -> None:
        async with client(ada.hub.run_dir, ada.hub.node_id, "test") as bus:
            await link(bus, bob.hub.join_endpoint)
            await described(bus, lambda state: len(state.peers) == 1, f"{bob.hub.node_id}/hub")

    with node(tmp_path / "ada") as ada, node(tmp_path / "bob") as bob:
        asyncio.run(meet())
        yield ada, bob


def linked(here: Here, count: int) -> None:
    """Wait until as many links stand."""

    async def look() -> None:
        async with client(here.hub.run_dir, here.hub.node_id, "test") as bus:
            await described(bus, lambda state: len(state.peers) == count)

    asyncio.run(look())


def standings(here: Here) -> dict[str, MemberStatus]:
    async def ask() -> MembersState:
        async with client(here.hub.run_dir, here.hub.node_id, "test") as bus:
            return await bus.request("hub", MembersGet(), MembersState, WITHIN_S)

    return {known.name: known.status for known in asyncio.run(ask()).members}


def row(here: Here, name: str) -> list[str]:
    """What `ls` says of a node."""
    return next(line.split() for line in said(here.data_dir, "ls").splitlines() if line.startswith(name))


def test_ls_shows_who_is_linked(pair: tuple[Here, Here]) -> None:
    ada, bob = pair
    assert row(ada, "bob") == ["bob", bob.hub.node_id, "member", "approved", "linked"]
    state = json.loads(cluster(ada.data_dir, "ls", "--json").stdout)
    assert (state["cluster"], state["linked"]) == ("home", [bob.hub.node_id])


@pytest.mark.parametrize("by_name", [True, False])
def test_revoke_cuts_the_link_and_says_that_the_code_is_still_known(pair: tuple[Here, Here], by_name: bool) -> None:
    ada, bob = pair
    text = said(ada.data_dir, "revoke", "bob" if by_name else bob.hub.node_id)
    assert f"bob ({bob.hub.node_id}) is shut out of home" in text
    assert "exobus cluster rotate" in text
    for here in (ada, bob):
        linked(here, 0)
    assert row(ada, "bob") == ["bob", bob.hub.node_id, "member", "revoked"]
    assert ada.code == HOME
    assert read_members(ada.data_dir, "home", strict=False).is_revoked(bob.hub.node_id)


def test_revoke_can_make_a_new_code_that_the_one_shut_out_does_not_get(pair: tuple[Here, Here]) -> None:
    ada, bob = pair
    assert "nodes that have it: this one" in said(ada.data_dir, "revoke", "bob", "--rotate")
    assert ada.code != HOME
    assert bob.code == HOME


def test_approve_lets_in_again(pair: tuple[Here, Here]) -> None:
    ada, _ = pair
    said(ada.data_dir, "revoke", "bob")
    assert "may join home" in said(ada.data_dir, "approve", "bob")
    assert standings(ada) == {"bob": MemberStatus.APPROVED}


def test_rotate_gives_linked_nodes_the_new_code_and_names_those_that_need_it_by_hand(pair: tuple[Here, Here]) -> None:
    ada, bob = pair
    with node(ada.data_dir.parent / "cyd") as cyd:

        async def meet() -> None:
            async with client(cyd.hub.run_dir, cyd.hub.node_id, "test") as bus:
                await link(bus, ada.hub.join_endpoint)

        asyncio.run(meet())
        linked(ada, 2)
    linked(ada, 1)
    text = said(ada.data_dir, "rotate")
    assert "nodes that have it: this one, bob" in text
    assert "not linked now: cyd;" in text
    assert ada.code.text() not in text
    assert ada.code != HOME
    assert in_time(lambda: bob.code == ada.code)


def test_a_node_that_nobody_knows_or_a_name_that_two_have_is_refused(tmp_path: Path) -> None:
    ada = tmp_path / "ada"
    ada.mkdir(mode=0o700)
    twins = [member("bob"), member("bob")]
    write_members(ada, Membership("home", by_id={twin.node_id: twin for twin in twins}))
    with node(ada) as here:
        assert "no node 'eve' is known here" in refused(ada, "revoke", "eve")
        sentence = refused(ada, "revoke", "bob")
        assert all(twin.node_id in sentence for twin in twins)
        assert set(standings(here).values()) == {MemberStatus.APPROVED}


@pytest.mark.parametrize("role", [Role.GATEWAY, Role.OBSERVER])
@pytest.mark.parametrize("command", [("revoke", "bob"), ("approve", "bob"), ("rotate",)])
def test_only_on_a_member_anything_is_decided(tmp_path: Path, role: Role, command: tuple[str, ...]) -> None:
    eve, bob = tmp_path / "eve", member("bob")
    eve.mkdir(mode=0o700)
    write_members(eve, Membership("home", by_id={bob.node_id: bob}))
    with node(eve, HOME.invite(role)) as here:
        assert "only a member" in refused(eve, *command)
        assert standings(here) == {"bob": MemberStatus.APPROVED}


@pytest.mark.parametrize("command", [("ls",), ("revoke", "bob"), ("rotate",)])
def test_a_node_that_stands_alone_says_how_to_make_a_cluster(tmp_path: Path, command: tuple[str, ...]) -> None:
    with node(tmp_path / "ada", code=None):
        assert "exobus cluster init" in refused(tmp_path / "ada", *command)


def test_without_a_running_node_nothing_is_decided(tmp_path: Path) -> None:
    done = cluster(tmp_path, "rotate")
    assert done.returncode == 3
    assert "start one with `exobus node`" in done.stderr


@pytest.mark.parametrize("decide", [cluster_members.rotate, lambda node: cluster_members.approve(node, "x")])
def test_a_decision_wants_a_node_named_where_nodes_of_two_clusters_run(
    decide: Callable[[str | None], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def running(cluster: str) -> NodeConfig:
        return NodeConfig(
            node_id="a" * 16,
            name=f"at {cluster}",
            incarnation=1,
            cluster=cluster,
            run_dir="",
            data_dir="",
            cache_dir="",
        )

    monkeypatch.setattr(cluster_members, "running_nodes", lambda: [running("home"), running("office")])
    with pytest.raises(typer.Exit) as left:
        decide(None)
    assert left.value.exit_code == 2
    assert "nodes of the clusters home, office run here; choose one with --node" in capsys.readouterr().err
