"""Adds models to the catalogue of a node here and removes them, by the files that its actors watch."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NoReturn

import msgspec
from filelock import FileLock, Timeout

from cli.api_client import get, model_path
from cli.local_nodes import choose_node, gateway
from cli.options import FAILED, USAGE, failures_shown, leave
from cli.text import show_bytes
from common.config import NodeConfig
from models.cache import ModelCache
from models.card import ALIAS, FolderSource, ModelCard
from models.catalogue import Catalogue, write_card
from models.errors import BadName, ModelError, UnknownModel
from models.names import LocalPath, parse_name
from models.own import own_card

LOCK_TIMEOUT_S = 2.0


def add_model(text: str, model_id: str, node: str | None) -> str:
    """Add a path or a name. Returns a sentence with the id. Ends the command on a failure."""
    if model_id and not ALIAS.fullmatch(model_id):
        leave(f"{model_id} is no id; give lower-case letters, digits, dots and dashes to --name", USAGE)
    try:
        path = Path(text).expanduser()
        if (text.strip() and path.exists()) or isinstance(parse_name(text), LocalPath):
            card = add_path(path, model_id, node)
            return f"{card.id} was added; try: exobus run {card.id}"
    except BadName as error:
        leave(str(error), USAGE)
    with failures_shown():
        found = get(gateway(None, None, node), model_path(text))
    if model_id:
        _add_alias(found["id"], model_id, choose_node(node))
    return f"{model_id or found['id']} was added; try: exobus run {model_id or found['id']}"


def add_path(path: Path, model_id: str, node: str | None) -> ModelCard:
    """Write the card of a user's own model for a node here. Ends the command on a failure."""
    config = choose_node(node)
    try:
        card = own_card(path, model_id)
        held = _held(card.id, Catalogue.of_node(config))
        if held and held.source != card.source:
            leave(
                f"the catalogue has another model {card.id}; choose an id with `exobus models add PATH --name ID`",
                USAGE,
            )
        write_card(config.own_cards_path, card)
    except ModelError as error:
        leave(str(error), FAILED)
    except OSError as error:
        _unwritable(config.own_cards_path, error)
    return card


def remove_model(name: str, node: str | None) -> str:
    """Remove an added card, or else what was fetched of a model. Returns a sentence. Ends the command on a failure."""
    if not name.strip():
        leave("the name of a model has 1 to 256 printable characters; `exobus models ls` lists models", USAGE)
    config = choose_node(node)
    cache = ModelCache(Path(config.cache_dir))
    try:
        card = Catalogue.of_node(config).get(name)
        added = config.own_cards_path / f"{card.id}.json"
        if added.is_file():
            added.unlink()
            return f"{name} was removed from the catalogue; its files stay"
        if isinstance(card.source, FolderSource):
            leave(f"{card.id} stands in a file of --cards; remove it there", USAGE)
        return _remove_files(card, cache, config)
    except UnknownModel as error:
        leave(str(error), FAILED)
    except OSError as error:
        _unwritable(cache.root, error)


def _remove_files(card: ModelCard, cache: ModelCache, config: NodeConfig) -> str:
    """Remove the files that were fetched of a model, unless it is in use."""
    with failures_shown():
        instances = get(gateway(None, None, config.node_id), "/v1/topology")["instances"]
    if card.id in {instance["model"] for instance in instances}:
        leave(f"{card.id} is loaded; unload it first with `exobus models unload {card.id}`", FAILED)
    freed = cache.bytes_here(card)
    try:
        with FileLock(cache.lock_file(card), timeout=LOCK_TIMEOUT_S):
            shutil.rmtree(cache.root / card.id, ignore_errors=True)
            (cache.cards_folder / f"{card.id}.json").unlink(missing_ok=True)
    except Timeout:
        leave(f"{card.id} is being fetched; try again when that is over", FAILED)
    return f"{show_bytes(freed)} of {card.id} were removed" if freed else f"nothing of {card.id} is on this machine"


def _add_alias(model_id: str, alias: str, config: NodeConfig) -> None:
    """Write a copy of a card with one more alias. The id stays: other nodes know the model by it."""
    catalogue = Catalogue.of_node(config)
    try:
        card, held = catalogue.get(model_id), _held(alias, catalogue)
        if held and held.id != model_id:
            leave(f"the catalogue has another model {alias}; choose another --name", USAGE)
        write_card(config.own_cards_path, msgspec.structs.replace(card, aliases=(*card.aliases, alias)))
    except ModelError as error:
        leave(str(error), FAILED)
    except OSError as error:
        _unwritable(config.own_cards_path, error)


def _held(name: str, catalogue: Catalogue) -> ModelCard | None:
    try:
        return catalogue.get(name)
    except UnknownModel:
        return None


def _unwritable(folder: Path, error: OSError) -> NoReturn:
    leave(f"{folder} cannot be written ({error.strerror}); check its permissions", FAILED)
