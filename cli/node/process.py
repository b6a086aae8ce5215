"""From the options of `exobus node` to a running node: options checked, folder locked, supervisor run."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path

import typer

from actors.data_dir import DataDir, DataDirError, check_name, open_first_free, open_folder
from actors.supervisor import run_node
from bus.process import allow_many_files, log_to
from cli.join_codes import CODE_IS_VISIBLE, code_file, given_code, is_code, keep_code, kept_code, take_from_environment
from cli.local_nodes import default_parent
from cli.node.addresses import checked_api_host, checked_host
from cli.node.options import NodeOptions
from cli.node.screen import NodeScreen
from cli.options import FAILED, USAGE, typed_command
from cli.text import parse_bytes, parse_seconds
from cluster.join_code import JoinCode, JoinCodeError
from cluster.roles import Role
from common.config import NodeConfig, is_loopback, write_config
from common.machine import machine_id
from common.private_files import PrivateFileError
from discovery.manual import peer_endpoint
from engines.settings import ENGINES, PRECISIONS, QUANTIZE
from models.cache import default_cache_root

MIN_FILES = 128
"""Open files of one process. A hub has some 50 of its own and a gateway 35; the rest is for other nodes and clients."""

IN_A_CLUSTER = "make a cluster with `exobus cluster init`, or join one with --join CODE"


class _LogFile(logging.FileHandler):
    """A log that loses records while its disk is full, instead of showing tracebacks on the screen."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Report any failure but one of the disk."""
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)


class BadOption(Exception):
    """An option that cannot be used; the message is one sentence."""


def run(options: NodeOptions) -> tuple[str, int]:
    """Run a node to its end. Returns a sentence why it failed, or an empty one, and the exit status."""
    inherited = take_from_environment()  # in any case, so that no child inherits it
    joining = options.join or inherited
    try:
        given = given_code(joining) if joining else None
        code = given or kept_code(options.data_dir)
        options = resolved(options)
        check_options(options, code)
    except (BadOption, DataDirError, ValueError) as error:
        return str(error), USAGE
    except PrivateFileError as error:
        return str(error), FAILED
    if (files := allow_many_files()) < MIN_FILES:
        return too_few_files(files), FAILED
    try:
        folder = _open_folder(options)
    except DataDirError as error:
        return str(error), FAILED
    try:
        if given:
            code = keep_code(options.data_dir, given)
        return _run(options, folder, code), FAILED
    except (JoinCodeError, PrivateFileError) as error:
        return str(error), FAILED
    finally:
        folder.close()


def _run(options: NodeOptions, folder: DataDir, code: JoinCode | None) -> str:
    config = settings(options, folder, code)
    try:
        write_config(config)
        log_to(_LogFile(folder.logs / "supervisor.log"), "supervisor")
    except OSError as error:
        return f"{error.filename} cannot be written ({error.strerror}); make room, or pass another --data-dir"
    for sentence in warnings(options):
        typer.echo(sentence, err=True)
    role = code.role if code else Role.MEMBER
    screen = NodeScreen(role, typed_command(), color="NO_COLOR" not in os.environ)
    failure = asyncio.run(run_node(config, folder, screen))
    if not failure:
        screen.event(f"node {config.name} has stopped")
    return failure


def resolved(options: NodeOptions) -> NodeOptions:
    """Return the options with addresses in place of words, and with the peers of EXOBUS_PEER. Raises BadAddress."""
    listed = os.environ.get("EXOBUS_PEER", "").split(",")
    peers = options.peers or tuple(peer.strip() for peer in listed if peer.strip())
    return replace(
        options,
        host=checked_host(options.host),
        api_host=checked_api_host(options.api_host, keys=options.api_keys is not None),
        peers=tuple(peer.removeprefix("tcp://") for peer in peers),
    )


def check_options(options: NodeOptions, code: JoinCode | None) -> None:
    """Check resolved options. Raises BadOption, DataDirError or ValueError, each with one sentence."""
    check_name(options.name or default_name())
    _check_choices(options)
    if options.memory is not None and parse_bytes(options.memory) == 0:
        raise BadOption("--memory 0 leaves no room for any layer; give an amount such as 12GB")
    parse_bytes(options.kv_memory or "0")
    parse_seconds(options.keep_loaded or "0")
    if options.cards is not None and not options.cards.exists():
        raise BadOption(f"--cards {options.cards} does not exist; give a folder of model cards")
    if options.models_dir is not None and not options.models_dir.expanduser().is_dir():
        raise BadOption(f"--models-dir {options.models_dir} is not a folder; give a folder of models")
    _check_paths(options)
    for peer in options.peers:
        peer_endpoint(peer)
    if code is None:
        _check_alone(options)


def _check_choices(options: NodeOptions) -> None:
    """Raise BadOption for an unknown engine, precision or rounding."""
    if options.engine not in ("auto", *ENGINES):
        raise BadOption(f"there is no engine {options.engine!r}; choose auto or one of {', '.join(ENGINES)}")
    for flag, value, known in (
        ("--precision", options.precision, PRECISIONS),
        ("--quantize", options.quantize, QUANTIZE),
    ):
        if value not in known:
            raise BadOption(f"{flag} {value!r} is not known; choose one of {', '.join(known)}")


def _check_paths(options: NodeOptions) -> None:
    """Raise BadOption for a path that is not UTF-8, as messages and settings are, and for a cache that is no folder."""
    cache = default_cache_root()
    folders: dict[str, Path | None] = {"--data-dir": options.data_dir or default_parent(), "the model cache": cache}
    folders |= {"--cards": options.cards, "--models-dir": options.models_dir, "--api-keys": options.api_keys}
    for name, path in folders.items():
        try:
            str(path).encode()
        except UnicodeEncodeError:
            raise BadOption(f"{name} {str(path)!r} is not UTF-8; give a path whose letters are") from None
    if not _nearest(cache).is_dir():
        raise BadOption(f"the model cache {cache} is not a folder; set EXOBUS_CACHE to one")


def _nearest(path: Path) -> Path:
    """Return the path itself if there is anything of that name, else the parent of which that is so."""
    return next(there for there in (path.absolute(), *path.absolute().parents) if os.path.lexists(there))


def _check_alone(options: NodeOptions) -> None:
    """Raise BadOption for an option that a node without a join code cannot have."""
    if not is_loopback(options.host):
        raise BadOption(f"--host {options.host} needs a join code; {IN_A_CLUSTER}")
    if options.peers:
        raise BadOption(f"--peer {options.peers[0]} needs a join code; {IN_A_CLUSTER}")
    if options.strict:
        raise BadOption(f"--strict is for a node of a cluster; {IN_A_CLUSTER}")


def settings(options: NodeOptions, folder: DataDir, code: JoinCode | None) -> NodeConfig:
    """Return the settings of a node from resolved options."""
    return NodeConfig(
        node_id=folder.node_id,
        name=options.name or (folder.path.name if options.data_dir is None else default_name()),
        incarnation=time.time_ns(),
        run_dir=str(folder.run_dir),
        data_dir=str(folder.path),
        cache_dir=str(default_cache_root()),
        machine=machine_id(),
        cluster=code.name if code else "",
        code_file=str(code_file(options.data_dir)) if code else "",
        **options.settings(),
    )


def warnings(options: NodeOptions) -> list[str]:
    """Return what the owner should know before the node starts; a line each."""
    found = []
    if options.join and is_code(options.join):
        found.append(CODE_IS_VISIBLE)
    if not is_loopback(options.api_host):
        found.append(
            f"warning: the API on {options.api_host} is plain HTTP; anyone who can listen in on that network "
            "reads chats and keys"
        )
    cache = default_cache_root()
    if not os.access(_nearest(cache), os.W_OK | os.X_OK):
        found.append(
            f"warning: the model cache {cache} cannot be written, so only models that are complete in it can be used; "
            "EXOBUS_CACHE names another folder"
        )
    return found


def too_few_files(allowed: int) -> str:
    """Return the sentence for a system that does not let a process open enough files."""
    return (
        f"a process of a node needs {MIN_FILES} open files, and this system allows {allowed}; raise the hard limit "
        "(ulimit -Hn, or LimitNOFILE= of a service) and start the node again"
    )


def default_name() -> str:
    """Return the machine's short host name with characters that are safe in a path."""
    return re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname().partition(".")[0]).strip("-")[:63] or "node"


def _open_folder(options: NodeOptions) -> DataDir:
    if options.data_dir is not None:
        return open_folder(options.data_dir.expanduser().absolute())
    if options.name is not None:
        return open_folder(default_parent() / options.name)
    return open_first_free(default_parent(), default_name())
