"""`exobus node`: the command. Its options are those of `cli.node.options`."""

from __future__ import annotations

from typing import Any

from cli.node.options import from_command, signature
from cli.options import leave


def node(**options: Any) -> None:
    """Run a node until Ctrl-C, alone or in a cluster.

    It runs in the cluster whose join code it has: one that is given with --join, or that `exobus cluster init` made.
    Each option is also an environment variable.
    """
    from cli.node import process

    sentence, status = process.run(from_command(**options))
    if sentence:
        leave(sentence, status)


vars(node)["__signature__"] = signature()  # what typer reads instead of **options
