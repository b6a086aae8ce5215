"""What every command that talks to a gateway shares: its options, and how failures end it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from cli.exit_codes import FAILED, UNREACHABLE, leave

ApiOption = Annotated[
    str | None, typer.Option("--api", envvar="EXOBUS_API", help="URL of a gateway.", show_default="a node here")
]
ApiKeyOption = Annotated[
    str | None,
    typer.Option(
        "--api-key", envvar="EXOBUS_API_KEY", help="Key of that gateway.", show_default="known of a node here"
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@contextmanager
def failures_shown() -> Iterator[None]:
    """A refusal ends the command with status 1, a node that does not answer with status 3."""
    from cli.api_client import ApiRefused, ApiUnreachable

    try:
        yield
    except ApiRefused as error:
        leave(str(error), FAILED)
    except ApiUnreachable as error:
        leave(str(error), UNREACHABLE)
