"""Hubs on threads and in child processes, and clients at them: shared by the bus's tests."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import zmq

from bus.client import BusClient, HubPaths, RequestError
from bus.hub import Hub
from bus.messages import HubDescribe, HubState, Message, PeerDial, RequestDone, kind_of
from bus.net.keys import KeyPair, new_key_pair
from bus.net.sockets import connect, open_socket
from bus.peering.member_store import write_members
from bus.process import RUN_DIR_VARIABLE
from bus.wire import Envelope
from cluster.join_code import JoinCode, new_join_code
from cluster.membership import Member, Membership
from cluster.roles import Role
from common.config import NodeConfig, write_config
from common.private_files import write_private

ROOT = Path(__file__).resolve().parent.parent.parent
WITHIN_S = 10.0

M = TypeVar("M", bound=Message)


@dataclass
class RunningHub:
    """A hub that serves on a thread; read its `hub` only after `stop`, or only what never changes."""

    hub: Hub
    run_dir: Path
    thread: threading.Thread
    stopped: threading.Event

    @property
    def node_id(self) -> str:
        return self.hub.node_id

    @property
    def endpoint(self) -> str:
        """Of its bus, with its key."""
        return self.hub.endpoint

    @property
    def join_endpoint(self) -> str:
        """Where to knock."""
        return self.hub.join_endpoint

    def stop(self) -> None:
        """End it with a good-bye. Twice is no error."""
        self.stopped.set()
        if self.thread.is_alive():
            with zmq.Context() as context, context.socket(zmq.DEALER) as knock:  # or it waits for its poll to end
                knock.setsockopt(zmq.LINGER, 0)
                knock.connect(HubPaths(self.run_dir).work)
                knock.send(b"")
                self.thread.join(WITHIN_S)
        self.thread.join(WITHIN_S)
        assert not self.thread.is_alive(), "the hub does not stop"


@contextmanager
def run_folder() -> Iterator[Path]:
    """A short path for ipc end points."""
    folder = Path(tempfile.mkdtemp(prefix="xb-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


KEYS: dict[str, KeyPair] = {}
CODES: dict[str, JoinCode] = {}


def new_node() -> str:
    """The id of a node that has a key; hubs of other ids stand alone."""
    pair = new_key_pair()
    KEYS[pair.node_id] = pair
    return pair.node_id


def code_of(cluster: str) -> JoinCode:
    """The join code of a cluster that this test run has made up."""
    if cluster not in CODES:
        CODES[cluster] = new_join_code(cluster)
    return CODES[cluster]


def hub_config(
    run_dir: Path,
    node_id: str,
    name: str = "a hub",
    incarnation: int = 1,
    cluster: str = "home",
    port: int | None = 0,
    *,
    code: JoinCode | None = None,
    strict: bool = False,
) -> NodeConfig:
    """The settings of a node that is nothing but a hub on loopback. Its key and its join code lie in `run_dir`."""
    key = KEYS.get(node_id)
    config = NodeConfig(
        node_id=node_id,
        name=name,
        incarnation=incarnation,
        cluster=cluster if key else "",
        code_file=str(run_dir / "join-code"),
        strict=strict,
        run_dir=str(run_dir),
        data_dir=str(run_dir),
        cache_dir="",
        bus_port=port,
        join_port=None if port is None else 0,
    )
    if key:
        write_private(config.key_path, key.secret.hex())
        write_private(config.code_path, (code or code_of(cluster)).text())
    return config


@contextmanager
def running_hub(
    node_id: str,
    *,
    cluster: str = "home",
    incarnation: int = 1,
    port: int = 0,
    code: JoinCode | None = None,
    role: Role = Role.MEMBER,
    strict: bool = False,
    knows: Sequence[str] = (),
) -> Iterator[RunningHub]:
    """A real hub on loopback. Its name is `name of NODE_ID`. It has let in the nodes that it `knows` before."""
    with run_folder() as run_dir:
        if knows:
            known = {n: Member(n, f"name of {n}", KEYS[n].public.hex()) for n in knows}
            write_members(run_dir, Membership(cluster, by_id=known))
        shown = (code or code_of(cluster)).invite(role)
        config = hub_config(
            run_dir, node_id, f"name of {node_id}", incarnation, cluster, port, code=shown, strict=strict
        )
        with serving(Hub(config), run_dir) as running:
            yield running


@contextmanager
def serving(hub: Hub, run_dir: Path) -> Iterator[RunningHub]:
    """A hub on a thread of its own, to the end of the block."""
    stopped = threading.Event()

    def serve() -> None:
        hub.run(stopped.is_set)
        hub.close()

    running = RunningHub(hub, run_dir, threading.Thread(target=serve, name=f"hub {hub.node_id}"), stopped)
    running.thread.start()
    try:
        yield running
    finally:
        running.stop()


@dataclass
class HubProcess:
    """A hub in a process of its own, which a test may kill."""

    process: subprocess.Popen[bytes]
    config: NodeConfig

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)


@contextmanager
def hub_process(config: NodeConfig, limit: Callable[[], None] | None = None) -> Iterator[HubProcess]:
    """`python -m bus.hub` as a supervisor would start it; `limit` is called in the new process."""
    write_config(config)
    process = subprocess.Popen(
        [sys.executable, "-m", "bus.hub"],
        cwd=ROOT,
        env={RUN_DIR_VARIABLE: config.run_dir, "PATH": "", "EXOBUS_LOG": "ERROR"},
        stdin=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=limit,
    )
    try:
        yield HubProcess(process, config)
    finally:
        process.kill()
        process.communicate(timeout=WITHIN_S)


@asynccontextmanager
async def client(run_dir: Path, node_id: str, name: str, *topics: type[Message] | str) -> AsyncIterator[BusClient]:
    """A client that its hub has met."""
    bus = BusClient(run_dir, node_id, name)
    await bus.start([topic if isinstance(topic, str) else kind_of(topic) for topic in topics])
    try:
        await described(bus, lambda state: name in [actor.name for actor in state.actors])
        yield bus
    finally:
        await bus.close()


async def described(bus: BusClient, wanted: Callable[[HubState], bool], hub: str = "hub") -> HubState:
    """The first state of a hub that is as wanted. Asks until then; TimeoutError at the deadline."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            try:
                state = await bus.request(hub, HubDescribe(), HubState, 1.0)
            except RequestError:
                continue
            if wanted(state):
                return state


async def heard(bus: BusClient, cls: type[M] | tuple[type[M], ...], within_s: float = WITHIN_S) -> tuple[M, Envelope]:
    """The next delivery of this class; others are passed over."""
    async with asyncio.timeout(within_s):
        async for envelope in bus.deliveries():
            if isinstance(envelope.message, cls):
                return envelope.message, envelope
    raise AssertionError("deliveries never end")


async def link(bus: BusClient, *join_endpoints: str) -> HubState:
    """Have the client's hub knock at others' join ports, and wait until as many links stand."""
    for join_endpoint in join_endpoints:
        await bus.request("hub", PeerDial(join_endpoint), RequestDone, WITHIN_S)
    return await described(bus, lambda state: len(state.peers) >= len(join_endpoints))


async def subscribed(bus: BusClient, hub: str, *topics: str) -> None:
    """Wait until the hub at this address knows that somebody behind it wants these topics."""
    await described(bus, lambda state: set(topics) <= set(state.subscriptions), hub)


@contextmanager
def dealer_of(node_id: str, endpoint: str) -> Iterator[zmq.Socket[bytes]]:
    """A bare DEALER at an end point, with a node's key where that is tcp."""
    with zmq.Context() as context, open_socket(context, zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 2000)
        dealer.setsockopt(zmq.SNDTIMEO, 2000)
        connect(dealer, endpoint, KEYS[node_id])
        yield dealer


def in_time(what: Callable[[], bool], within_s: float = WITHIN_S) -> bool:
    """Whether `what` comes true in time."""
    pause, tries = threading.Event(), round(within_s / 0.005)
    return any(what() or pause.wait(0.005) for _ in range(tries))


def kinds(classes: Sequence[type[Message]]) -> list[str]:
    return [kind_of(cls) for cls in classes]
