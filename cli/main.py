"""The root of the command line. Imports only typer, so that `exobus --help` responds at once."""

from __future__ import annotations

from typing import Annotated

import typer

from cli import key_command, run_command, topology_command
from cli.bus import commands as bus_commands
from cli.cluster import commands as cluster_commands
from cli.models import commands as models_commands
from cli.node import command as node_command
from cli.options import HELP, CommandGroup
from common.privacy import turn_telemetry_off

app = typer.Typer(
    name="exobus",
    cls=CommandGroup,
    context_settings=HELP,
    help="Run language models across the machines you already own.",
    rich_markup_mode=None,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_version(requested: bool) -> None:
    if requested:
        from common.version import running_version

        typer.echo(f"exobus {running_version()}")
        raise typer.Exit()


@app.callback(
    epilog="Try: exobus node   |   exobus run smollm2-135m 'What is a ring?'   |   exobus bus sub 'instance.>'"
)
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Run language models across the machines you already own."""
    turn_telemetry_off()


app.command("node")(node_command.node)
app.command("run")(run_command.run)
app.command("key")(key_command.key)
app.command("topology")(topology_command.topology)
app.add_typer(models_commands.app, name="models")
app.add_typer(cluster_commands.app, name="cluster")
app.add_typer(bus_commands.app, name="bus")
