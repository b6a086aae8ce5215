"""From what was asked of `exobus node` to a running node: settings checked, folder locked, supervisor run."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import re
import socket
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import typer

from actors.node_folder import FolderError, NodeFolder, check_name, first_free, open_folder
from actors.supervisor import run_node
from bus.config import DEFAULT_DISCOVERY_PORT, NodeConfig, write_config
from cli.exits import FAILED, USAGE
from cli.nodes import default_parent
from cli.screen import NodeScreen
from cli.sizes import parse_bytes
from discovery.manual import peer_endpoint
from engines.precision import PRECISIONS
from engines.registry import ENGINES
from models.cache import default_cache_root


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The options of `exobus node`; None where nothing was asked."""

    name: str | None = None
    host: str = "127.0.0.1"
    insecure: bool = False
    api_port: int | None = None
    bus_port: int | None = None
    discovery_port: int = DEFAULT_DISCOVERY_PORT
    data_dir: Path | None = None
    peers: tuple[str, ...] = ()
    engine: str = "auto"
    memory: str | None = None
    kv_memory: str | None = None
    precision: str = "fast"
    threads: int | None = None
    cards: Path | None = None


class BadOption(Exception):
    """An option that cannot be meant; the message is one sentence."""


def run(asked: Asked) -> tuple[str, int]:
    """Run a node to its end: a sentence why it failed (or none), and the exit status."""
    try:
        check(asked)
    except (BadOption, FolderError, ValueError) as error:
        return str(error), USAGE
    try:
        folder = _folder(asked)
    except FolderError as error:
        return str(error), FAILED
    try:
        config = settings(asked, folder)
        write_config(config)
        _log_to(folder)
        _warn(config)
        screen = NodeScreen(colour="NO_COLOR" not in os.environ)
        failure = asyncio.run(run_node(config, folder, screen))
    finally:
        folder.close()
    return failure, FAILED


def check(asked: Asked) -> None:
    """Raises BadOption, FolderError or ValueError, each with one sentence, for what cannot be meant."""
    check_name(asked.name or default_name())
    if asked.engine not in ("auto", *ENGINES):
        raise BadOption(f"there is no engine {asked.engine!r}; choose auto or one of {', '.join(ENGINES)}")
    check_host(asked.host, insecure=asked.insecure)
    if asked.memory is not None and parse_bytes(asked.memory) == 0:
        raise BadOption("--memory 0 leaves no room for any layer; give an amount such as 12GB")
    parse_bytes(asked.kv_memory or "0")
    if asked.precision not in PRECISIONS:
        raise BadOption(f"--precision {asked.precision!r} is not known; choose one of {', '.join(PRECISIONS)}")
    if asked.cards is not None and not asked.cards.exists():
        raise BadOption(f"--cards {asked.cards} does not exist; give a folder of model cards")
    for peer in _peers(asked):
        peer_endpoint(peer)


def check_host(host: str, *, insecure: bool) -> None:
    """Raises BadOption for what is no address, for the wildcard, and for the network while nobody asked for it."""
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        raise BadOption(f"--host {host!r} is no address; {_addresses_here()}") from None
    if address.is_unspecified:
        raise BadOption(f"--host {host} is no address that other machines can dial; {_addresses_here()}")
    if not address.is_loopback and not insecure:
        raise BadOption(
            f"--host {host} would open the bus to the network, and it is not encrypted yet; "
            "add --insecure if you trust everyone on it"
        )


def _addresses_here() -> str:
    families = (socket.AF_INET, socket.AF_INET6)
    found = {a.address for addresses in psutil.net_if_addrs().values() for a in addresses if a.family in families}
    return f"name one of this machine's: {', '.join(sorted(found))}"


def settings(asked: Asked, folder: NodeFolder) -> NodeConfig:
    """The node's settings."""
    return NodeConfig(
        node_id=folder.node_id,
        name=asked.name or (folder.path.name if asked.data_dir is None else default_name()),
        incarnation=time.time_ns(),
        run_dir=str(folder.run_dir),
        data_dir=str(folder.path),
        cache_dir=str(default_cache_root()),
        cards_dir=str(asked.cards.absolute()) if asked.cards else "",
        host="127.0.0.1" if asked.host == "localhost" else asked.host,
        api_port=asked.api_port,
        bus_port=asked.bus_port,
        discovery_port=asked.discovery_port,
        peers=_peers(asked),
        engine=asked.engine,
        memory=parse_bytes(asked.memory) if asked.memory else 0,
        kv_memory=parse_bytes(asked.kv_memory) if asked.kv_memory else 0,
        precision=asked.precision,
        threads=asked.threads or 0,
    )


def default_name() -> str:
    """The machine's short host name, made fit for a path."""
    return re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname().partition(".")[0]).strip("-")[:63] or "node"


def _peers(asked: Asked) -> tuple[str, ...]:
    """The peers that were asked for; those of the environment where the command names none."""
    listed = os.environ.get("EXOBUS_PEER", "").split(",")
    named = asked.peers or tuple(peer.strip() for peer in listed if peer.strip())
    return tuple(peer.removeprefix("tcp://") for peer in named)


def _folder(asked: Asked) -> NodeFolder:
    if asked.data_dir is not None:
        return open_folder(asked.data_dir.expanduser().absolute())
    if asked.name is not None:
        return open_folder(default_parent() / asked.name)
    return first_free(default_parent(), default_name())


def _log_to(folder: NodeFolder) -> None:
    """The supervisor's own log, beside those of its children."""
    logging.basicConfig(
        level=os.environ.get("EXOBUS_LOG", "INFO").upper(),
        format="%(asctime)s %(levelname)s supervisor %(name)s: %(message)s",
        filename=folder.logs / "supervisor.log",
    )


def _warn(config: NodeConfig) -> None:
    if not config.loopback:
        sentence = (
            f"warning: the bus and the API listen on {config.host} without encryption or keys; "
            "everyone who reaches it can use and read them"
        )
        typer.echo(sentence, err=True)
