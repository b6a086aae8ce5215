"""The settings of a node: one frozen value in the node's run folder, which every process of the node reads."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import msgspec

from common.files import write_atomic

CONFIG_FILE = "node.json"
API_FILE = "api"  # in the run folder: the gateway's URL, once it listens
CARDS_DIR = "cards"  # in the data folder: models that the user added; in the run folder: those of models_dir
KEY_FILE = "key"  # in the data folder: the node's CURVE secret
DEFAULT_BUS_PORT = 52416
DEFAULT_API_PORT = 52415
DEFAULT_JOIN_PORT = 52414
DEFAULT_DISCOVERY_PORT = 52413


class NodeConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A node's settings.

    `cluster` is empty for a node that stands alone: it listens on no tcp port but its API's. In a cluster, `code_file`
    is the path of the join code, and `strict` admits only nodes with a key that was approved.
    Ports: 0 means any free port, None the usual port or, if that is taken, any. Memory is in bytes: 0 means all that is
    available; `kv_memory` bounds what one stage gets for keys and values, and 0 leaves that to the node. The node takes
    at most `max_stages` stages. Those without a session for `keep_loaded_s` seconds end; -1 means never. `threads` of
    an engine: 0 means this node's share of the machine's cores. `precision` is one of `engines.settings.PRECISIONS`,
    `quantize` one of `engines.settings.QUANTIZE`.

    `cards_dir` is a folder of model cards, and every model in `models_dir` has one made.

    `machine` is the same for all nodes of one machine; it is determined once for all processes of a node.
    `host` is where other nodes reach this one, `api_host` where the gateway listens: joining a cluster does not expose
    the API. `api_keys` is the path of a file of API keys. `api_names` are further host names by which clients may
    address the gateway, `cors` the origins of web pages that may use it.
    """

    node_id: str
    name: str
    incarnation: int
    run_dir: str
    data_dir: str
    cache_dir: str
    machine: str = ""
    cards_dir: str = ""
    models_dir: str = ""
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
    quantize: str = "auto"
    max_stages: int = 8
    keep_loaded_s: int = -1
    threads: int = 0

    @property
    def run_path(self) -> Path:
        """The folder of ipc endpoints, mode 0700, removed when the node ends."""
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

    @property
    def own_cards_path(self) -> Path:
        """The folder of the cards that `exobus models add` writes; it need not exist."""
        return Path(self.data_dir) / CARDS_DIR

    @property
    def listed_cards_path(self) -> Path:
        """The folder of the cards of what lies in `models_dir`; it goes when the node ends."""
        return self.run_path / CARDS_DIR

    def api(self) -> str:
        """Read the gateway's URL; empty while the gateway does not listen yet."""
        try:
            return (self.run_path / API_FILE).read_text()
        except OSError:
            return ""

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the node."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches the address. Text that is not an address counts as reachable."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def ports_to_try(asked: int | None, usual: int) -> tuple[int, ...]:
    """Return the ports to bind to, in order of preference; 0 is any free one.

    Binding is the only test: a port that was free a moment ago may be another node's by now.
    """
    return (usual, 0) if asked is None else (asked,)


def write_config(config: NodeConfig) -> Path:
    """Write the settings into the run folder, and return the file's path."""
    path = config.run_path / CONFIG_FILE
    write_atomic(path, msgspec.json.encode(config))
    return path


def read_config(run_dir: Path) -> NodeConfig:
    """Read the settings of a running node. Raises OSError or msgspec.DecodeError."""
    return msgspec.json.decode((run_dir / CONFIG_FILE).read_bytes(), type=NodeConfig)
