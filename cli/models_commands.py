"""`exobus models …`: what the catalogue of a node offers."""

from __future__ import annotations

import json

import typer

from cli.options import ApiKeyOption, ApiOption, JsonOption, failures_shown

app = typer.Typer(help="Models that can be run.", rich_markup_mode=None, no_args_is_help=True)


@app.callback()
def root() -> None:
    """Models that can be run."""


@app.command("ls")
def list_models(as_json: JsonOption = False, api: ApiOption = None, api_key: ApiKeyOption = None) -> None:
    """List the models of the catalogue."""
    from cli.api_client import get
    from cli.local_nodes import api as gateway
    from cli.sizes import show_bytes
    from cli.table import table

    with failures_shown():
        models = get(gateway(api, api_key), "/v1/models")["data"]
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
