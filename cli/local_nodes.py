"""The nodes that run on this machine, as their run and data folders tell. No sockets here."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import msgspec
import typer
from platformdirs import user_data_path

from actors.data_dir import running_node
from cli.api_client import Api
from cli.exit_codes import UNREACHABLE, USAGE, leave
from common.config import CONFIG_FILE, DEFAULT_API_PORT, NodeConfig, read_config

DATA_DIR_VARIABLE = "EXOBUS_DATA_DIR"
NO_NODE = "no node runs on this machine; start one with `exobus node`"


def default_parent() -> Path:
    """Where the data folders of this user's nodes lie."""
    return user_data_path("exobus") / "nodes"


def running_nodes() -> list[NodeConfig]:
    """The settings of this user's nodes that run here, by name; with EXOBUS_DATA_DIR set, of the node in it only."""
    named = os.environ.get(DATA_DIR_VARIABLE)
    folders = [Path(named)] if named else _data_folders()
    found = (running_node(folder) for folder in folders)
    return sorted((node for node in found if node), key=lambda node: (node.name, node.node_id))


def _data_folders() -> list[Path]:
    """The data folders of nodes that left a run folder. Another user's run folder is not believed."""
    folders = set()
    for file in Path(tempfile.gettempdir()).glob(f"exobus-*/{CONFIG_FILE}"):
        try:
            if file.parent.stat().st_uid == os.getuid():
                folders.add(Path(read_config(file.parent).data_dir))
        except (OSError, msgspec.DecodeError):
            continue  # it is being made, or being removed
    return sorted(folders)


def choose_node(name: str | None) -> NodeConfig:
    """The node of that name, else the only one, else the first by name, which is said. Leaves where there is none."""
    nodes = running_nodes()
    named = [node for node in nodes if name in (None, node.name, node.node_id)]
    if not nodes:
        leave(NO_NODE, UNREACHABLE)
    if not named:
        leave(f"no node {name!r} runs here; there is {', '.join(node.name for node in nodes)}", UNREACHABLE)
    if len(named) > 1:
        typer.echo(f"asking node {named[0].name}; --node chooses another", err=True)
    return named[0]


def api(url: str | None, key: str | None) -> Api:
    """The gateway to talk to: what was given, else that of a node here, else the usual address.

    The gateway of a node here is shown a key of its own where none was given; no other address ever sees one.
    """
    announced = {address: node for node in running_nodes() if (address := node.api())}
    chosen = (url or next(iter(announced), f"http://127.0.0.1:{DEFAULT_API_PORT}")).rstrip("/")
    if key is not None:
        return Api(chosen, _checked(key.strip()))
    return Api(chosen, _own_key(announced[chosen]) if chosen in announced else "")


def _own_key(node: NodeConfig) -> str:
    """The first key in the file of a node of this user; none where it has no file, or one that cannot be read."""
    if not node.api_keys:
        return ""
    from gateway.http.api_keys import ApiKeyFileError, read_keys

    try:
        return next(iter(read_keys(Path(node.api_keys)).keys), "")
    except ApiKeyFileError:
        return ""


def _checked(key: str) -> str:
    if not all("!" <= letter <= "~" for letter in key):
        leave("an API key has visible ASCII characters only; pass it as it stands in the gateway's file", USAGE)
    return key
