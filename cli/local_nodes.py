"""The nodes that run on this machine, found by their run and data folders, and which of them a command uses."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import typer
from platformdirs import user_data_path

from actors.data_dir import RUN_FILE, running_node
from actors.run_folder import PREFIX
from cli.api_client import Api
from cli.options import UNREACHABLE, USAGE, leave
from common.config import CONFIG_FILE, DEFAULT_API_PORT, NodeConfig, read_config

DATA_DIR_VARIABLE = "EXOBUS_DATA_DIR"
NO_NODE = "no node runs on this machine; start one with `exobus node`"


def default_parent() -> Path:
    """Return the folder of the data folders of this user's nodes."""
    return user_data_path("exobus") / "nodes"


def running_nodes() -> list[NodeConfig]:
    """Return the settings of this user's nodes that run here; with EXOBUS_DATA_DIR, only of the node in that folder.

    The node with its API on the usual port comes first, the others follow by name.
    """
    named = os.environ.get(DATA_DIR_VARIABLE)
    folders = [Path(named)] if named else _data_folders()
    found = (running_node(folder) for folder in folders)
    return sorted((node for node in found if node), key=_rank)


def _rank(node: NodeConfig) -> tuple[bool, str, str]:
    return not node.api().endswith(f":{DEFAULT_API_PORT}"), node.name, node.node_id


def _data_folders() -> list[Path]:
    """Return the data folders of nodes that have a run folder. The run folder of another user is ignored.

    A node with a folder of its own is found by its run folder, if that is among the temporary files of this process.
    """
    folders = {file.parent for file in default_parent().glob(f"*/{RUN_FILE}")}
    for file in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/{CONFIG_FILE}"):
        try:
            if file.parent.stat().st_uid == os.getuid():
                folders.add(Path(read_config(file.parent).data_dir))
        except (OSError, msgspec.DecodeError):
            continue  # it is being made, or being removed
    return sorted(folders)


def choose_node(name: str | None, nodes: list[NodeConfig] | None = None) -> NodeConfig:
    """Return the node of that name or id, or the first one if no name is given.

    Prints which one was chosen if there are several. Ends the command if there is no such node.
    """
    nodes = running_nodes() if nodes is None else nodes
    found = [node for node in nodes if name in (None, node.name, node.node_id)]
    if not nodes:
        leave(NO_NODE, UNREACHABLE)
    if not found:
        leave(f"no node {name!r} runs here; these do: {_names(nodes)}", UNREACHABLE)
    if len(found) > 1:
        typer.echo(
            f"asking node {found[0].name}; --node or EXOBUS_NODE chooses another ({_names(found[1:])})", err=True
        )
    return found[0]


def the_only_node(name: str | None) -> NodeConfig:
    """Return the node of that name or id, or the only one. Ends the command if several could be meant."""
    nodes = running_nodes()
    found = [node for node in nodes if name in (None, node.name, node.node_id)]
    if len(found) > 1:
        labels = _names(found) if name is None else ", ".join(node.node_id for node in found)
        leave(f"several nodes run here ({labels}); choose one with --node or EXOBUS_NODE", USAGE)
    return choose_node(name, nodes)


def gateway(url: str | None, key: str | None, node: str | None = None) -> Api:
    """Return the gateway to use: of that URL, else of that node here, else of the first node here.

    If no node runs here, that is the usual address. The gateway of a node here gets a key of its own if none is given;
    no other address ever gets one.
    """
    nodes = running_nodes()
    ready = [here for here in nodes if here.api()]
    if url:
        chosen = checked_url(url)
    elif nodes or node:
        here = choose_node(node, nodes if node else ready or nodes)
        chosen = here.api() or leave(f"node {here.name} is not ready yet; try again in a moment", UNREACHABLE)
    else:
        chosen = f"http://127.0.0.1:{DEFAULT_API_PORT}"
    if key is not None:
        return Api(chosen, _checked_key(key.strip()))
    return Api(chosen, next((_own_key(here) for here in ready if here.api() == chosen), ""))


def checked_url(text: str) -> str:
    """Complete the URL of a gateway: `studio.lan` is `http://studio.lan:52415`; a path of `/v1` is dropped.

    A URL with a scheme keeps its port, also the default port of the scheme.
    """
    text = text.strip().rstrip("/").removesuffix("/v1")
    if "://" in text:
        return text
    try:
        port = urlsplit(f"//{text}").port
    except ValueError:  # not a number: the request fails with a sentence
        port = 0
    return f"http://{text}" if port is not None else f"http://{text}:{DEFAULT_API_PORT}"


def _own_key(node: NodeConfig) -> str:
    """Return the first API key of a node of this user, or an empty string if it has none that can be read."""
    if not node.api_keys:
        return ""
    from gateway.http.api_keys import ApiKeyFileError, read_keys

    try:
        return next(iter(read_keys(Path(node.api_keys)).keys), "")
    except ApiKeyFileError:
        return ""


def _checked_key(key: str) -> str:
    if not all("!" <= letter <= "~" for letter in key):
        leave("an API key has visible ASCII characters only; pass it as it stands in the gateway's file", USAGE)
    return key


def _names(nodes: list[NodeConfig]) -> str:
    return ", ".join(node.name for node in nodes)
