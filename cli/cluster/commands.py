"""The options of `exobus cluster …`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.options import HELP, CommandGroup, JsonOption, NodeOption
from cluster.roles import Role

app = typer.Typer(
    help="Make a cluster, and manage its members.",
    cls=CommandGroup,
    context_settings=HELP,
    rich_markup_mode=None,
    no_args_is_help=True,
)

DataDirOption = Annotated[
    Path | None,
    typer.Option(envvar="EXOBUS_DATA_DIR", help="A node's own data folder.", show_default="all nodes of this user"),
]
MemberArgument = Annotated[str, typer.Argument(metavar="NODE", help="Name or id of a node; see `exobus cluster ls`.")]


@app.callback()
def root() -> None:
    """Make a cluster, and manage its members."""


@app.command("init")
def init(
    name: Annotated[str, typer.Option(help="Name of the cluster.")] = "home", data_dir: DataDirOption = None
) -> None:
    """Make a cluster and print its join code."""
    from cli.cluster import code

    code.init(name, data_dir)


@app.command("invite")
def invite(
    role: Annotated[Role, typer.Option(help="What a node with the code may do.")] = Role.MEMBER,
    data_dir: DataDirOption = None,
) -> None:
    """Print the join code for another machine."""
    from cli.cluster import code

    code.invite(role, data_dir)


@app.command("ls")
def list_members(node: NodeOption = None, as_json: JsonOption = False) -> None:
    """List approved, pending and revoked nodes."""
    from cli.cluster import members

    members.list_members(node, as_json=as_json)


@app.command("revoke")
def revoke(
    member: MemberArgument,
    rotate: Annotated[bool, typer.Option("--rotate", help="Make a new join code too.")] = False,
    node: NodeOption = None,
) -> None:
    """Revoke a node's key, on all members at once."""
    from cli.cluster import members

    members.revoke(node, member, rotate=rotate)


@app.command("approve")
def approve(member: MemberArgument, node: NodeOption = None) -> None:
    """Approve a pending or revoked node."""
    from cli.cluster import members

    members.approve(node, member)


@app.command("rotate")
def rotate(node: NodeOption = None) -> None:
    """Make a new join code; the old one stops working."""
    from cli.cluster import members

    members.rotate(node)
