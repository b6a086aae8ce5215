"""`exobus cluster ls`, `revoke`, `approve` and `rotate`: asks the hub of a node here, which tells the others."""

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
from bus.peering.member_store import MEMBERS_FILE, read_members
from cli.code_file import code_file, read_code
from cli.exit_codes import FAILED, USAGE, leave
from cli.local_nodes import DATA_DIR_VARIABLE, default_parent, running_nodes
from cli.observer import observe
from cli.table import table
from cluster.join_code import JoinCodeError
from cluster.membership import Member
from common.private_files import PrivateFileError

ASK_WITHIN_S = 5.0


def show(node: str | None, *, as_json: bool) -> None:
    """Members as a running node knows them; where none runs, as they were kept."""
    if node is None and not running_nodes():
        _print(_kept(), as_json=as_json)
        return

    async def look(bus: BusClient) -> None:
        _print(await _state(bus), as_json=as_json)

    observe(node, look)


def revoke(node: str | None, who: str, *, rotate: bool) -> None:
    """Shut a node out, and say what that does not do."""

    async def look(bus: BusClient) -> None:
        state = await _state(bus)
        member = _one(state.members, who)
        await bus.request("hub", MemberRevoke(member.node_id), RequestDone, ASK_WITHIN_S)
        typer.echo(f"{_called(member)} is shut out of {state.cluster}; every linked node was told")
        if rotate:
            await _rotate(bus)
        else:
            typer.echo(
                "it still knows the join code; `exobus cluster rotate` keeps it out with a new key too", err=True
            )

    observe(_sure(node), look)


def approve(node: str | None, who: str) -> None:
    """Let a node in."""

    async def look(bus: BusClient) -> None:
        state = await _state(bus)
        member = _one(state.members, who)
        await bus.request("hub", MemberApprove(member.node_id), RequestDone, ASK_WITHIN_S)
        typer.echo(f"{_called(member)} may join {state.cluster}")

    observe(_sure(node), look)


def rotate(node: str | None) -> None:
    """Make a new join code."""
    observe(_sure(node), _rotate)


def _sure(node: str | None) -> str | None:
    """Decisions are for one cluster: where nodes of several run here, one has to be named."""
    named = {config.cluster: config.name for config in running_nodes() if config.cluster}
    if node is None and len(named) > 1:
        leave(f"nodes of the clusters {', '.join(sorted(named))} run here; choose one with --node", USAGE)
    return node


async def _rotate(bus: BusClient) -> None:
    done = await bus.request("hub", ClusterRotate(), ClusterRotated, ASK_WITHIN_S)
    typer.echo(f"there is a new join code; nodes that have it: {', '.join(('this one', *done.updated))}")
    if done.unreachable:
        typer.echo(
            f"not linked now: {', '.join(done.unreachable)}; there type `exobus node --join CODE` once, with the code "
            "that `exobus cluster invite` prints here",
            err=True,
        )


async def _state(bus: BusClient) -> MembersState:
    return await bus.request("hub", MembersGet(), MembersState, ASK_WITHIN_S)


def _one(members: Sequence[Member], who: str) -> Member:
    """The member of that id or name; a name that several have is refused."""
    found = [member for member in members if who in (member.node_id, member.name)]
    if not found:
        leave(f"no node {who!r} is known here; see `exobus cluster ls`", FAILED)
    if len(found) > 1:
        ids = ", ".join(member.node_id for member in found)
        leave(f"several nodes are called {who}: {ids}; give the id", FAILED)
    return found[0]


def _called(member: Member) -> str:
    return f"{member.name} ({member.node_id})" if member.name else member.node_id


def _kept() -> MembersState:
    """What the nodes of this user kept on file."""
    named = os.environ.get(DATA_DIR_VARIABLE)
    folder = Path(named) if named else None
    try:
        code = read_code(code_file(folder))
        name = code.name if code else ""
        folders = [folder] if folder else sorted(file.parent for file in default_parent().glob(f"*/{MEMBERS_FILE}"))
        known = {m.node_id: m for path in folders for m in read_members(path, name, strict=False).by_id.values()}
    except (JoinCodeError, PrivateFileError) as error:
        leave(str(error), FAILED)
    return MembersState(name, tuple(known.values()))


def _print(state: MembersState, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(msgspec.to_builtins(state)))
        return
    if not state.cluster:
        typer.echo("no cluster here; make one with `exobus cluster init`", err=True)
        return
    rows = [
        (m.name, m.node_id, m.role.value, m.status.value, "linked" if m.node_id in state.linked else "")
        for m in sorted(state.members, key=lambda m: (m.status.value, m.name))
    ]
    typer.echo(table(("NODE", "ID", "ROLE", "STATUS", f"IN {state.cluster}"), rows))
