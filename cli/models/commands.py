"""`exobus models …`: the models of a node, and a user's own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any

import typer

from cli.options import FAILED, HELP, USAGE, ApiKeyOption, ApiOption, CommandGroup, JsonOption, NodeOption, leave
from cli.options import failures_shown as shown

app = typer.Typer(
    help="Show, find and add the models that can be run.",
    cls=CommandGroup,
    context_settings=HELP,
    rich_markup_mode=None,
    no_args_is_help=True,
)

NameArgument = Annotated[str, typer.Argument(help="An id, ORG/REPO, or ORG/REPO:Q4_K_M.", metavar="NAME")]


@app.callback()
def root() -> None:
    """Show, find and add the models that can be run."""


@app.command("ls")
def list_models(
    as_json: JsonOption = False, api: ApiOption = None, api_key: ApiKeyOption = None, node: NodeOption = None
) -> None:
    """List the catalogue: what fits now, what is here, and what is loaded."""
    from cli.models.tables import list_of, loaded_of

    models, topology = _models_and_topology(api, api_key, node)
    parts = [list_of(models, topology), *([loaded_of(topology)] if topology["instances"] else [])]
    typer.echo(json.dumps(models) if as_json else "\n\n".join(parts))


@app.command("search")
def search(
    words: Annotated[str, typer.Argument(help="A part of a name.", metavar="WORD")],
    as_json: JsonOption = False,
    api: ApiOption = None,
    api_key: ApiKeyOption = None,
    node: NodeOption = None,
) -> None:
    """Search the catalogue, and then the hub, to which the word is sent."""
    from cli.models.tables import list_of
    from models.errors import BadName, ModelError
    from models.names import HubName, parse_name
    from models.sources.fetch import search as search_hub

    with suppress(BadName):
        words = name.repo if isinstance(name := parse_name(words), HubName) else words
    models, topology = _models_and_topology(api, api_key, node)
    texts = [" ".join((model["id"], model["name"], *model["aliases"], model["from"])) for model in models]
    found = [model for model, text in zip(models, texts, strict=True) if words.lower() in text.lower()]
    try:
        names = search_hub(words)
    except ModelError as error:
        names = []
        typer.echo(f"exobus: only the catalogue was searched: {error}", err=True)
    if as_json:
        typer.echo(json.dumps({"catalogue": found, "hub": names}))
        return
    parts = [list_of(found, topology)] if found else []
    parts += ["on the hub:\n" + "\n".join(f"  {name}" for name in names)] if names else []
    typer.echo("\n\n".join(parts) or f"there is no model named like {words!r}")


@app.command("show")
def show(
    name: NameArgument,
    as_json: JsonOption = False,
    api: ApiOption = None,
    api_key: ApiKeyOption = None,
    node: NodeOption = None,
) -> None:
    """Show a model: its architecture, sizes, memory, license and source."""
    from cli.models.tables import details_of, own_node

    model, topology = _model_and_topology(name, api, api_key, node)
    typer.echo(json.dumps(model) if as_json else details_of(model, own_node(topology)))


@app.command("plan")
def plan(
    name: NameArgument,
    context: Annotated[int, typer.Option(min=0, help="Positions that one chat should have.")] = 0,
    as_json: JsonOption = False,
    api: ApiOption = None,
    api_key: ApiKeyOption = None,
    node: NodeOption = None,
) -> None:
    """Show which node would hold which layers, or why none."""
    from cli.models.tables import plan_of, plan_rows
    from cluster.placement import DoesNotFit

    model, topology = _model_and_topology(name, api, api_key, node, context)
    try:
        typer.echo(json.dumps(plan_rows(model, topology, context)) if as_json else plan_of(model, topology, context))
    except DoesNotFit as error:
        leave(str(error), FAILED)


@app.command("add")
def add(
    name: Annotated[str, typer.Argument(help="A folder, a .gguf file, or ORG/REPO.", metavar="PATH|NAME")],
    model_id: Annotated[str, typer.Option("--name", help="Id of the model.", show_default="from its name")] = "",
    node: NodeOption = None,
) -> None:
    """Add your own model, or one of the hub.

    A node here has it in its catalogue at once.
    """
    from cli.models.adding import add_model

    typer.echo(add_model(name, model_id, node))


@app.command("pull")
def pull(name: NameArgument, node: NodeOption = None) -> None:
    """Fetch a model before it is used.

    Ctrl-C stops it; the next pull or use goes on where it ended.
    """
    from cli.models.pulling import pull_model

    typer.echo(pull_model(name, node))


@app.command("unload")
def unload(name: NameArgument, node: NodeOption = None) -> None:
    """Unload a model from the memory of all nodes.

    A model that is in use stays. The next request loads it again.
    """
    from cli.models.unloading import unload_model

    typer.echo(unload_model(name, node))


@app.command("rm")
def remove(name: Annotated[str, typer.Argument(metavar="ID", help="Id of a model.")], node: NodeOption = None) -> None:
    """Remove an added model, or what was fetched of one.

    Your own files stay.
    """
    from cli.models.adding import remove_model

    typer.echo(remove_model(name, node))


def _models_and_topology(api: str | None, key: str | None, node: str | None) -> tuple[list[Any], Mapping[str, Any]]:
    from cli.api_client import get
    from cli.local_nodes import gateway

    with shown():
        asked = gateway(api, key, node)
        return get(asked, "/v1/models")["data"], get(asked, "/v1/topology")


def _model_and_topology(
    name: str, api: str | None, key: str | None, node: str | None, context: int = 0
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return what a gateway says of a model and of its cluster. Ends the command for a path, and on a failure."""
    from cli.api_client import get, model_path
    from cli.local_nodes import gateway
    from models.errors import BadName
    from models.names import LocalPath, parse_name

    try:
        if isinstance(parse_name(name), LocalPath):
            leave(f"{name} is a path; add it with `exobus models add {name}`, and use the id that it gets", USAGE)
    except BadName as error:
        leave(str(error), USAGE)
    with shown():
        asked = gateway(api, key, node)
        return get(asked, f"{model_path(name)}?context={context}"), get(asked, "/v1/topology")
