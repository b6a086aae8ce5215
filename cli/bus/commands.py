"""The options of `exobus bus …`. Each command observes a running node for as long as it lasts."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.options import HELP, CommandGroup, JsonOption, NodeOption

app = typer.Typer(
    help="Watch the message bus.",
    cls=CommandGroup,
    context_settings=HELP,
    rich_markup_mode=None,
    no_args_is_help=True,
)

CountOption = Annotated[int, typer.Option("--count", "-n", min=0, help="End after this many.", show_default="never")]


@app.callback()
def root() -> None:
    """Watch the message bus of a node on this machine."""


@app.command("ls")
def list_actors(node: NodeOption = None, as_json: JsonOption = False) -> None:
    """List actors, links and counters of all linked nodes."""
    from cli.bus import ls
    from cli.local_nodes import choose_node
    from cli.observer import observe

    observe(choose_node(node), lambda bus: ls.run(bus, as_json=as_json))


@app.command("sub")
def subscribe(
    pattern: Annotated[
        str,
        typer.Argument(
            help="Kinds such as 'session.*', '>' for all facts, 'tap.>' for work that passes the hub "
            "(without 'tap.actor.hello', which each actor sends once a second)."
        ),
    ],
    node: NodeOption = None,
    count: CountOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Print the messages that match a pattern.

    In a pattern, `*` is one word of a kind, and `>` all words that follow.
    """
    from cli.bus import sub
    from cli.local_nodes import choose_node
    from cli.observer import observe

    chosen = choose_node(node)
    observe(chosen, lambda bus: sub.run(bus, chosen.name, pattern, count, as_json=as_json))


@app.command("top")
def top(
    node: NodeOption = None,
    count: CountOption = 0,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two reports.")] = 1.0,
    as_json: JsonOption = False,
) -> None:
    """Show rates by kind, and how many messages were lost."""
    from cli.bus import top
    from cli.local_nodes import choose_node
    from cli.observer import observe

    observe(choose_node(node), lambda bus: top.run(bus, count, interval, as_json=as_json))
