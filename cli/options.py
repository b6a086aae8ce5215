"""What the commands share: options, exit statuses, help, and how a command ends on a failure."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

FAILED = 1
USAGE = 2
UNREACHABLE = 3
INTERRUPTED = 130  # as a shell reports a process that Ctrl-C ended

HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 120}
OTHER_NAMES = {  # what users of similar programs type, and the exobus command that does it
    "chat": "exobus run MODEL",
    "help": "exobus --help",
    "list": "exobus models ls",
    "ls": "exobus models ls",
    "ps": "exobus topology",
    "pull": "exobus models pull NAME",
    "serve": "exobus node",
    "start": "exobus node",
    "stop": "exobus models unload NAME",
    "status": "exobus topology",
    "version": "exobus --version",
}

ApiOption = Annotated[
    str | None,
    typer.Option("--api", envvar="EXOBUS_API", help="URL or host of a gateway.", show_default="a node here"),
]
ApiKeyOption = Annotated[
    str | None,
    typer.Option(
        "--api-key", envvar="EXOBUS_API_KEY", help="Key of that gateway.", show_default="found for a node here"
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
NodeOption = Annotated[
    str | None,
    typer.Option(
        "--node",
        envvar="EXOBUS_NODE",
        help="Name or id of a node here.",
        show_default="the one on port 52415",
    ),
]


class CommandGroup(TyperGroup):
    """A group of commands that suggests the exobus command for a name that other programs use."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Find the command. If there is none, fail with the command to use instead, if that is known."""
        others = OTHER_NAMES if ctx.parent is None else {"list": f"{ctx.command_path} ls"}
        if args[0] not in self.commands and args[0] in others:
            ctx.fail(f"No such command {args[0]!r}; try `{others[args[0]]}`.")
        return super().resolve_command(ctx, args)


def leave(sentence: str, status: int) -> NoReturn:
    """Print one sentence on standard error, and end the command with a status.

    The sentence may quote a gateway or another node, so it cannot control the terminal.
    """
    from common.text_safety import one_line

    typer.echo(f"exobus: {one_line(sentence)}", err=True)
    raise typer.Exit(status)


@contextmanager
def failures_shown() -> Iterator[None]:
    """End the command with status 1 if the gateway refuses, and with status 3 if no node answers."""
    from cli.api_client import ApiRefused, ApiUnreachable

    try:
        yield
    except ApiRefused as error:
        leave(str(error), FAILED)
    except ApiUnreachable as error:
        leave(str(error), UNREACHABLE)


def typed_command() -> str:
    """Return `exobus` as this user can type it: by its path if the shell does not find it."""
    script = Path(sys.argv[0])
    if shutil.which("exobus"):
        return "exobus"
    if script.name != "exobus":
        return f"{shlex.quote(sys.executable)} -m cli"
    path, here = script.absolute(), Path.cwd()
    shown = str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
    return shlex.quote(shown if "/" in shown else f"./{shown}")
