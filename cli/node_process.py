"""From what was asked of `exobus node` to a running node: settings checked, folder locked, supervisor run."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import time
from dataclasses import dataclass, replace
from pathlib import Path

import typer

from actors.data_dir import DataDir, DataDirError, check_name, open_first_free, open_folder
from actors.supervisor import run_node
from bus.process import log_to
from cli.addresses import checked_api_host, checked_host
from cli.code_file import code_file
from cli.exit_codes import FAILED, USAGE
from cli.join_option import SEEN, given_code, is_code, keep_code, kept_code, take_from_environment
from cli.local_nodes import default_parent
from cli.screen import NodeScreen
from cli.sizes import parse_bytes
from cluster.join_code import JoinCode, JoinCodeError
from cluster.roles import Role
from common.config import DEFAULT_DISCOVERY_PORT, NodeConfig, is_loopback, write_config
from common.private_files import PrivateFileError
from discovery.manual import peer_endpoint
from engines.precision import PRECISIONS
from engines.registry import ENGINES
from models.cache import default_cache_root

IN_A_CLUSTER = "make a cluster with `exobus cluster init`, or join one with --join CODE"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The options of `exobus node`; None where nothing was asked. `join` is a join code or a file's path."""

    name: str | None = None
    join: str | None = None
    strict: bool = False
    host: str = "127.0.0.1"
    bus_port: int | None = None
    join_port: int | None = None
    discovery_port: int = DEFAULT_DISCOVERY_PORT
    peers: tuple[str, ...] = ()
    api_host: str = "127.0.0.1"
    api_port: int | None = None
    api_keys: Path | None = None
    api_names: tuple[str, ...] = ()
    cors: tuple[str, ...] = ()
    data_dir: Path | None = None
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
    joining = asked.join or take_from_environment()
    take_from_environment()
    try:
        given = given_code(joining) if joining else None
        code = given or kept_code(asked.data_dir)
        asked = resolved(asked)
        check(asked, code)
    except (BadOption, DataDirError, ValueError) as error:
        return str(error), USAGE
    except PrivateFileError as error:
        return str(error), FAILED
    try:
        folder = _folder(asked)
    except DataDirError as error:
        return str(error), FAILED
    try:
        if given:
            code = keep_code(asked.data_dir, given)
        return _run(asked, folder, code), FAILED
    except (JoinCodeError, PrivateFileError) as error:
        return str(error), FAILED
    finally:
        folder.close()


def _run(asked: Asked, folder: DataDir, code: JoinCode | None) -> str:
    """Run a node that may run; a sentence why it failed, or none."""
    config = settings(asked, folder, code)
    write_config(config)
    _log_to(folder)
    for sentence in warnings(asked):
        typer.echo(sentence, err=True)
    screen = NodeScreen(code.role if code else Role.MEMBER, colour="NO_COLOR" not in os.environ)
    return asyncio.run(run_node(config, folder, screen))


def resolved(asked: Asked) -> Asked:
    """With addresses for what was asked in words. Raises BadAddress."""
    api_host = checked_api_host(asked.api_host, keys=asked.api_keys is not None)
    return replace(asked, host=checked_host(asked.host), api_host=api_host, peers=_peers(asked))


def check(asked: Asked, code: JoinCode | None) -> None:
    """Raises BadOption, DataDirError or ValueError, each with one sentence, for what cannot be meant."""
    check_name(asked.name or default_name())
    if asked.engine not in ("auto", *ENGINES):
        raise BadOption(f"there is no engine {asked.engine!r}; choose auto or one of {', '.join(ENGINES)}")
    if asked.memory is not None and parse_bytes(asked.memory) == 0:
        raise BadOption("--memory 0 leaves no room for any layer; give an amount such as 12GB")
    parse_bytes(asked.kv_memory or "0")
    if asked.precision not in PRECISIONS:
        raise BadOption(f"--precision {asked.precision!r} is not known; choose one of {', '.join(PRECISIONS)}")
    if asked.cards is not None and not asked.cards.exists():
        raise BadOption(f"--cards {asked.cards} does not exist; give a folder of model cards")
    for peer in asked.peers:
        peer_endpoint(peer)
    if code is None:
        _check_alone(asked)


def _check_alone(asked: Asked) -> None:
    """Raises BadOption for what a node without a join code cannot do."""
    if not is_loopback(asked.host):
        raise BadOption(f"--host {asked.host} opens a node to others of its cluster, and it has none; {IN_A_CLUSTER}")
    if asked.peers:
        raise BadOption(f"--peer {asked.peers[0]} lets nobody in who has no join code; {IN_A_CLUSTER}")
    if asked.strict:
        raise BadOption(f"--strict is for a node of a cluster; {IN_A_CLUSTER}")


def settings(asked: Asked, folder: DataDir, code: JoinCode | None) -> NodeConfig:
    """The node's settings, from what was resolved."""
    return NodeConfig(
        node_id=folder.node_id,
        name=asked.name or (folder.path.name if asked.data_dir is None else default_name()),
        incarnation=time.time_ns(),
        run_dir=str(folder.run_dir),
        data_dir=str(folder.path),
        cache_dir=str(default_cache_root()),
        cards_dir=str(asked.cards.absolute()) if asked.cards else "",
        host=asked.host,
        api_host=asked.api_host,
        api_port=asked.api_port,
        api_keys=str(asked.api_keys.expanduser().absolute()) if asked.api_keys else "",
        api_names=asked.api_names,
        cors=asked.cors,
        bus_port=asked.bus_port,
        join_port=asked.join_port,
        discovery_port=asked.discovery_port,
        cluster=code.name if code else "",
        code_file=str(code_file(asked.data_dir)) if code else "",
        strict=asked.strict,
        peers=asked.peers,
        engine=asked.engine,
        memory=parse_bytes(asked.memory) if asked.memory else 0,
        kv_memory=parse_bytes(asked.kv_memory) if asked.kv_memory else 0,
        precision=asked.precision,
        threads=asked.threads or 0,
    )


def warnings(asked: Asked) -> list[str]:
    """What the owner should know before the node starts; a line each."""
    seen = [SEEN] if asked.join and is_code(asked.join) else []
    plain = (
        f"warning: the API on {asked.api_host} is plain HTTP; who can listen in on that network reads chats and keys"
    )
    return seen if is_loopback(asked.api_host) else [*seen, plain]


def default_name() -> str:
    """The machine's short host name, made fit for a path."""
    return re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname().partition(".")[0]).strip("-")[:63] or "node"


def _peers(asked: Asked) -> tuple[str, ...]:
    """The peers that were asked for; those of the environment where the command names none."""
    listed = os.environ.get("EXOBUS_PEER", "").split(",")
    named = asked.peers or tuple(peer.strip() for peer in listed if peer.strip())
    return tuple(peer.removeprefix("tcp://") for peer in named)


def _folder(asked: Asked) -> DataDir:
    if asked.data_dir is not None:
        return open_folder(asked.data_dir.expanduser().absolute())
    if asked.name is not None:
        return open_folder(default_parent() / asked.name)
    return open_first_free(default_parent(), default_name())


def _log_to(folder: DataDir) -> None:
    """The supervisor's own log, beside those of its children."""
    log_to(logging.FileHandler(folder.logs / "supervisor.log"), "supervisor")
