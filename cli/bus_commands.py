"""`exobus bus …`: looks at a running node's bus as an observer; changes nothing."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.options import JsonOption

app = typer.Typer(help="Look at the message bus.", rich_markup_mode=None, no_args_is_help=True)

NodeOption = Annotated[
    str | None, typer.Option("--node", envvar="EXOBUS_NODE", help="Which node here.", show_default="the one that runs")
]
CountOption = Annotated[int, typer.Option("--count", "-n", min=0, help="End after so many.", show_default="never")]


@app.callback()
def root() -> None:
    """Look at the message bus of a node on this machine."""


@app.command("ls")
def list_actors(node: NodeOption = None, as_json: JsonOption = False) -> None:
    """List actors, links and counters of every node that this one is linked to."""
    from cli import bus_ls
    from cli.observer import observe

    observe(node, lambda bus: bus_ls.run(bus, as_json=as_json))


@app.command("sub")
def subscribe(
    pattern: Annotated[
        str, typer.Argument(help="Kinds such as 'session.*', '>' for all facts, 'tap.>' for work that passes the hub.")
    ],
    node: NodeOption = None,
    count: CountOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Print messages as they pass; `*` is one word of a kind, `>` all that follow."""
    from cli import bus_sub
    from cli.observer import observe

    observe(node, lambda bus: bus_sub.run(bus, pattern, count, as_json=as_json))


@app.command("top")
def top(
    node: NodeOption = None,
    count: CountOption = 0,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two reports.")] = 1.0,
    as_json: JsonOption = False,
) -> None:
    """Show messages and bytes a second by kind, and how many were lost."""
    from cli import bus_top
    from cli.observer import observe

    observe(node, lambda bus: bus_top.run(bus, count, interval, as_json=as_json))
