"""Fetches a model into the cache of this machine before it is used. A node here names the model and the cache."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from cli.api_client import get, model_path
from cli.local_nodes import choose_node, gateway
from cli.options import FAILED, INTERRUPTED, USAGE, failures_shown, leave
from cli.text import show_bytes
from cluster.shard import whole
from common.text_safety import one_line
from models.cache import ModelCache
from models.card import FolderSource, ModelCard
from models.catalogue import Catalogue
from models.errors import BadName, ModelError
from models.names import LocalPath, parse_name
from models.sources.fetch import fetch
from models.sources.request import Progress


def pull_model(name: str, node: str | None) -> str:
    """Fetch all files of a model. Returns a sentence. Ends the command on a failure, and with 130 after Ctrl-C."""
    try:
        if isinstance(parse_name(name), LocalPath):
            leave(f"{name} is a path, of which nothing has to be fetched; try: exobus run {name}", USAGE)
    except BadName as error:
        leave(str(error), USAGE)
    config = choose_node(node)
    with failures_shown():
        found = get(gateway(None, None, config.node_id), model_path(name))
    progress = _Line()
    try:
        card, cache = Catalogue.of_node(config).get(found["id"]), ModelCache(Path(config.cache_dir))
        if isinstance(card.source, FolderSource):
            return f"{card.id} is a folder or file of this machine; try: exobus run {card.id}"
        _fetch(card, cache, progress)
    except ModelError as error:
        progress.end()
        leave(str(error), FAILED)
    except KeyboardInterrupt:
        progress.end()
        typer.echo(f"exobus: interrupted; `exobus models pull {name}` goes on where it ended", err=True)
        raise typer.Exit(INTERRUPTED) from None
    progress.end()
    return f"{card.id} is here ({show_bytes(cache.bytes_here(card))}); try: exobus run {card.id}"


def _fetch(card: ModelCard, cache: ModelCache, progress: _Line) -> None:
    """Fetch what a gateway needs and all weights. Raises a ModelError."""
    for shard in (None, whole(card.id, card.n_layers)):
        fetch(card, shard, cache, progress.show)


class _Line:
    """The progress of a fetch on one line of standard error, if that is a terminal."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()

    def show(self, progress: Progress) -> None:
        """Replace the line."""
        if self._shown:
            done, total = show_bytes(progress.done_bytes), show_bytes(progress.total_bytes)
            typer.echo(f"\r\x1b[2K{done} of {total}  {one_line(progress.file)[:48]}", nl=False, err=True)

    def end(self) -> None:
        """Remove the line."""
        if self._shown:
            typer.echo("\r\x1b[2K", nl=False, err=True)
