"""What every process of a node is told at its start: one frozen value in the node's run folder. No sockets here."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path

import msgspec

CONFIG_FILE = "node.json"
API_FILE = "api"  # in the run folder: the gateway's URL, once it listens
KEY_FILE = "key"  # in the data folder: the node's CURVE secret
DEFAULT_BUS_PORT = 52416
DEFAULT_API_PORT = 52415
DEFAULT_JOIN_PORT = 52414
DEFAULT_DISCOVERY_PORT = 52413


class NodeConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A node's settings.

    `cluster` is empty for a node that stands alone: it listens on no tcp port but its API's. Else `code_file` holds the
    join code. `strict` lets nobody in whose key nobody approved.
    Ports: 0 means any free one, None the usual one or, where that is taken, any. Memory in bytes: 0 means all that is
    available; `kv_memory` bounds what one stage gets for keys and values, and 0 leaves it to the node. Threads of an
    engine: 0 means this node's share of the machine's cores. `precision` is one of `engines.precision`'s.

    `host` is where other nodes reach this one, `api_host` where the gateway listens: adding a machine opens no API.
    `api_keys` is the path of a file of API keys. `api_names` are further host names that clients may call the gateway
    by, `cors` the origins of web pages that may.
    """

    node_id: str
    name: str
    incarnation: int
    run_dir: str
    data_dir: str
    cache_dir: str
    cards_dir: str = ""
    host: str = "127.0.0.1"
    api_host: str = "127.0.0.1"
    api_port: int | None = 0
    api_keys: str = ""
    api_names: tuple[str, ...] = ()
    cors: tuple[str, ...] = ()
    bus_port: int | None = 0
    join_port: int | None = 0
    discovery_port: int = DEFAULT_DISCOVERY_PORT
    cluster: str = ""
    code_file: str = ""
    strict: bool = False
    peers: tuple[str, ...] = ()
    engine: str = "auto"
    memory: int = 0
    kv_memory: int = 0
    precision: str = "fast"
    threads: int = 0

    @property
    def run_path(self) -> Path:
        """The folder of ipc end points, mode 0700, gone with the node."""
        return Path(self.run_dir)

    @property
    def key_path(self) -> Path:
        """The file of the node's key."""
        return Path(self.data_dir) / KEY_FILE

    @property
    def code_path(self) -> Path:
        """The file of the join code."""
        return Path(self.code_file)

    @property
    def cards_path(self) -> Path | None:
        """A folder of the user's own model cards, if one was named."""
        return Path(self.cards_dir) if self.cards_dir else None

    def api(self) -> str:
        """The gateway's URL; empty while it does not listen yet."""
        try:
            return (self.run_path / API_FILE).read_text()
        except OSError:
            return ""

    @property
    def loopback(self) -> bool:
        """Whether nothing but this machine can reach the node."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether nothing but this machine reaches the address. What is no address counts as open."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def ports_to_try(asked: int | None, usual: int) -> tuple[int, ...]:
    """The ports to bind to, in order of preference; 0 is any free one.

    Trying is the only way to know: a port that was free a moment ago may be another node's by now.
    """
    return (usual, 0) if asked is None else (asked,)


def write_config(config: NodeConfig) -> Path:
    """Put the config into its run folder, whole or not at all."""
    path = config.run_path / CONFIG_FILE
    part = path.with_suffix(".part")
    part.write_bytes(msgspec.json.encode(config))
    os.replace(part, path)
    return path


def read_config(run_dir: Path) -> NodeConfig:
    """The config of a running node. Raises OSError or msgspec.DecodeError."""
    return msgspec.json.decode((run_dir / CONFIG_FILE).read_bytes(), type=NodeConfig)
