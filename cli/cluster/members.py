"""`exobus cluster ls`, `revoke`, `approve` and `rotate`: asks the hub of a node here, which informs the other nodes."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import msgspec
import typer

from bus.client import BusClient
from bus.messages import (
    ClusterRotate,
    ClusterRotated,
    MemberApprove,
    MemberRevoke,
    MembersGet,
    MembersState,
    RequestDone,
)
from bus.net.identity import own_role
from bus.peering.member_store import MEMBERS_FILE, read_members
from cli.join_codes import kept_code
from cli.local_nodes import DATA_DIR_VARIABLE, choose_node, default_parent, running_nodes, the_only_node
from cli.observer import observe
from cli.options import FAILED, leave
from cli.text import table
from cluster.join_code import JoinCodeError
from cluster.membership import Member
from common.config import NodeConfig
from common.private_files import PrivateFileError

ASK_TIMEOUT_S = 5.0


def list_members(node: str | None, *, as_json: bool) -> None:
    """Print the members as a running node knows them; if none runs, print the list that was kept on disk."""
    nodes = running_nodes()
    if node is None and not nodes:
        _print(_stored(), None, as_json=as_json)
        return
    config = choose_node(node, nodes)

    async def command(bus: BusClient) -> None:
        _print(await _state(bus), config, as_json=as_json)

    observe(config, command)


def revoke(node: str | None, name: str, *, rotate: bool) -> None:
    """Revoke a member, and print what that does not do."""

    async def command(bus: BusClient) -> None:
        state = await _state(bus)
        member = _find(state.members, name)
        await bus.request("hub", MemberRevoke(member.node_id), RequestDone, ASK_TIMEOUT_S)
        typer.echo(f"{_label(member)} is revoked in {state.cluster}; every linked node was informed")
        if rotate:
            await _rotate(bus)
        else:
            typer.echo("it could join again with a new key; `exobus cluster rotate` makes a new join code", err=True)

    observe(the_only_node(node), command)


def approve(node: str | None, name: str) -> None:
    """Approve a node."""

    async def command(bus: BusClient) -> None:
        state = await _state(bus)
        member = _find(state.members, name)
        await bus.request("hub", MemberApprove(member.node_id), RequestDone, ASK_TIMEOUT_S)
        typer.echo(f"{_label(member)} is approved in {state.cluster}")

    observe(the_only_node(node), command)


def rotate(node: str | None) -> None:
    """Make a new join code."""
    observe(the_only_node(node), _rotate)


async def _rotate(bus: BusClient) -> None:
    done = await bus.request("hub", ClusterRotate(), ClusterRotated, ASK_TIMEOUT_S)
    typer.echo(f"there is a new join code; nodes that have it: {', '.join(('this one', *done.updated))}")
    if done.unreachable:
        typer.echo(
            f"not linked now: {', '.join(done.unreachable)}; there type `exobus node --join CODE` once, with the code "
            "that `exobus cluster invite` prints here",
            err=True,
        )


async def _state(bus: BusClient) -> MembersState:
    return await bus.request("hub", MembersGet(), MembersState, ASK_TIMEOUT_S)


def _find(members: Sequence[Member], name: str) -> Member:
    """Return the member of that id or name. Ends the command if there is none, or if several have the name."""
    found = [member for member in members if name in (member.node_id, member.name)]
    if not found:
        leave(f"no node {name!r} is known here; see `exobus cluster ls`", FAILED)
    if len(found) > 1:
        ids = ", ".join(member.node_id for member in found)
        leave(f"several nodes are called {name}: {ids}; give the id", FAILED)
    return found[0]


def _label(member: Member) -> str:
    return f"{member.name} ({member.node_id})" if member.name else member.node_id


def _stored() -> MembersState:
    """Return the members that the nodes of this user stored on disk."""
    named = os.environ.get(DATA_DIR_VARIABLE)
    folder = Path(named) if named else None
    try:
        code = kept_code(folder)
        name = code.name if code else ""
        folders = [folder] if folder else sorted(file.parent for file in default_parent().glob(f"*/{MEMBERS_FILE}"))
        known = {m.node_id: m for path in folders for m in read_members(path, name, strict=False).by_id.values()}
    except (JoinCodeError, PrivateFileError) as error:
        leave(str(error), FAILED)
    return MembersState(name, tuple(known.values()))


def _own_role(config: NodeConfig) -> str:
    try:
        return own_role(config).value
    except PrivateFileError as error:
        leave(str(error), FAILED)


def _print(state: MembersState, here: NodeConfig | None, *, as_json: bool) -> None:
    """Print the members; the table begins with the node `here` that was asked, which is not in its own list."""
    if as_json:
        typer.echo(json.dumps(msgspec.to_builtins(state)))
        return
    if not state.cluster:
        typer.echo("no cluster here; make one with `exobus cluster init`", err=True)
        return
    own = [(here.name, here.node_id, _own_role(here), "", "this node")] if here else []
    rows = [
        (m.name, m.node_id, m.role.value, m.status.value, "linked" if m.node_id in state.linked else "")
        for m in sorted(state.members, key=lambda m: (m.status.value, m.name))
    ]
    if not own and not rows:
        typer.echo(f"no node has joined cluster {state.cluster} yet", err=True)
        return
    typer.echo(table(("NODE", "ID", "ROLE", "STATUS", f"IN {state.cluster}"), [*own, *rows]))
