"""`exobus models …`: the catalogue of a node."""

from __future__ import annotations

import json

import typer

from cli.options import HELP, ApiKeyOption, ApiOption, CommandGroup, JsonOption, NodeOption, failures_shown

app = typer.Typer(
    help="Show the models that can be run.",
    cls=CommandGroup,
    context_settings=HELP,
    rich_markup_mode=None,
    no_args_is_help=True,
)


@app.callback()
def root() -> None:
    """Show the models that can be run."""


@app.command("ls")
def list_models(
    as_json: JsonOption = False, api: ApiOption = None, api_key: ApiKeyOption = None, node: NodeOption = None
) -> None:
    """List the models of the catalogue."""
    from cli.api_client import get
    from cli.local_nodes import gateway
    from cli.text import show_bytes, table

    with failures_shown():
        models = get(gateway(api, api_key, node), "/v1/models")["data"]
    if as_json:
        typer.echo(json.dumps(models))
        return
    rows = [
        (
            model["id"],
            show_bytes(model["size_bytes"]),
            f"{model['n_layers']}",
            f"{model['context_length']}",
            model["name"],
        )
        for model in models
    ]
    typer.echo(table(("MODEL", "DOWNLOAD", "LAYERS", "CONTEXT", "NAME"), rows))
