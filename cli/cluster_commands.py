"""`exobus cluster …`: make a cluster, invite to it, see who belongs to it, shut out, let in, change the join code."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.bus_commands import NodeOption
from cli.options import JsonOption
from cluster.roles import Role

app = typer.Typer(help="Make a cluster, and say who belongs to it.", rich_markup_mode=None, no_args_is_help=True)

DataDirOption = Annotated[
    Path | None,
    typer.Option(envvar="EXOBUS_DATA_DIR", help="A node's own data folder.", show_default="all nodes of this user"),
]
WhoArgument = Annotated[str, typer.Argument(help="Name or id of a node; see `exobus cluster ls`.")]


@app.callback()
def root() -> None:
    """Make a cluster, and say who belongs to it."""


@app.command("init")
def init(
    name: Annotated[str, typer.Option(help="Name of the cluster.")] = "home", data_dir: DataDirOption = None
) -> None:
    """Make a cluster and print its join code."""
    from cli import cluster_code

    cluster_code.init(name, data_dir)


@app.command("invite")
def invite(
    role: Annotated[Role, typer.Option(help="What the code's holder may do.")] = Role.MEMBER,
    data_dir: DataDirOption = None,
) -> None:
    """Print the join code for another machine."""
    from cli import cluster_code

    cluster_code.invite(role, data_dir)


@app.command("ls")
def list_members(node: NodeOption = None, as_json: JsonOption = False) -> None:
    """List the nodes that were let in, that wait, and that were shut out."""
    from cli import cluster_members

    cluster_members.show(node, as_json=as_json)


@app.command("revoke")
def revoke(
    who: WhoArgument,
    rotate: Annotated[bool, typer.Option("--rotate", help="Make a new join code too.")] = False,
    node: NodeOption = None,
) -> None:
    """Shut a node out, everywhere and at once."""
    from cli import cluster_members

    cluster_members.revoke(node, who, rotate=rotate)


@app.command("approve")
def approve(who: WhoArgument, node: NodeOption = None) -> None:
    """Let in a node that waits for it, or that was shut out."""
    from cli import cluster_members

    cluster_members.approve(node, who)


@app.command("rotate")
def rotate(node: NodeOption = None) -> None:
    """Make a new join code; the old one lets nobody in any more."""
    from cli import cluster_members

    cluster_members.rotate(node)
