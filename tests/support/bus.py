"""Hubs on threads and in child processes, and clients of them."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import zmq

from bus.client import BusClient, RequestError
from bus.hub import Hub
from bus.messages import HubDescribe, HubState, LinkProbe, Message, PeerDial, RequestDone, kind_of
from bus.net.endpoints import HubPaths
from bus.net.keys import KeyPair, new_key_pair
from bus.net.sockets import connect, open_socket
from bus.peering.member_store import write_members
from bus.process import RUN_DIR_VARIABLE
from bus.wire import Envelope
from cluster.join_code import JoinCode, new_join_code
from cluster.membership import Member, Membership, MemberStatus
from cluster.roles import Role
from common.config import NodeConfig, write_config
from common.private_files import write_private

ROOT = Path(__file__).resolve().parent.parent.parent
WITHIN_S = 10.0

M = TypeVar("M", bound=Message)


@dataclass
class RunningHub:
    """A hub that runs on a thread. Before `stop`, read only constant attributes of its `hub`."""

    hub: Hub
    run_dir: Path
    thread: threading.Thread
    stopped: threading.Event

    @property
    def node_id(self) -> str:
        return self.hub.node_id

    @property
    def endpoint(self) -> str:
        """Its bus port, with its key."""
        return self.hub.endpoint

    @property
    def join_endpoint(self) -> str:
        """Its join port."""
        return self.hub.join_endpoint

    def stop(self) -> None:
        """Stop it as a signal does. Stopping it twice is no error."""
        self.stopped.set()
        if self.thread.is_alive():
            with zmq.Context() as context, context.socket(zmq.DEALER) as waker:  # or the hub waits for its poll to end
                waker.setsockopt(zmq.LINGER, 0)
                waker.connect(HubPaths(self.run_dir).work)
                waker.send(b"")
                self.thread.join(WITHIN_S)
        self.thread.join(WITHIN_S)
        assert not self.thread.is_alive(), "the hub does not stop"


@contextmanager
def run_folder() -> Iterator[Path]:
    """Make a folder with a path short enough for ipc endpoints."""
    folder = Path(tempfile.mkdtemp(prefix="xb-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


KEYS: dict[str, KeyPair] = {}
CODES: dict[str, JoinCode] = {}


def new_node() -> str:
    """Return the id of a new node with a key. Hubs with any other id are standalone."""
    pair = new_key_pair()
    KEYS[pair.node_id] = pair
    return pair.node_id


def code_of(cluster: str) -> JoinCode:
    """Return the join code of a cluster of this test run."""
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
    """Return the settings of a node that is only a hub on loopback. Its key and its join code lie in `run_dir`."""
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
    """Run a hub on loopback, named `name of NODE_ID`. The nodes that it `knows` are approved members."""
    with run_folder() as run_dir:
        if knows:
            known = {
                n: Member(n, f"name of {n}", KEYS[n].public.hex(), Role.MEMBER, MemberStatus.APPROVED) for n in knows
            }
            write_members(run_dir, Membership(cluster, by_id=known))
        shown = (code or code_of(cluster)).invite(role)
        config = hub_config(
            run_dir, node_id, f"name of {node_id}", incarnation, cluster, port, code=shown, strict=strict
        )
        with hub_of(config) as running:
            yield running


@contextmanager
def hub_of(config: NodeConfig) -> Iterator[RunningHub]:
    """Run the hub of a node with these settings, on a thread of its own."""
    hub, stopped = Hub(config), threading.Event()

    def serve() -> None:
        hub.run(stopped.is_set)
        hub.close()

    running = RunningHub(hub, config.run_path, threading.Thread(target=serve, name=f"hub {hub.node_id}"), stopped)
    running.thread.start()
    try:
        yield running
    finally:
        running.stop()


@dataclass
class HubProcess:
    """A hub in a process of its own, which a test may signal."""

    process: subprocess.Popen[bytes]
    config: NodeConfig

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)


@contextmanager
def hub_process(config: NodeConfig, limit: Callable[[], None] | None = None) -> Iterator[HubProcess]:
    """Run `python -m bus.hub` as a supervisor would start it; `limit` is called in the new process."""
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
    """Start a client, and wait until the hub has registered it."""
    bus = BusClient(run_dir, node_id, name)
    await bus.start([topic if isinstance(topic, str) else kind_of(topic) for topic in topics])
    try:
        await described(bus, lambda state: name in [actor.name for actor in state.actors])
        yield bus
    finally:
        await bus.close()


async def described(bus: BusClient, wanted: Callable[[HubState], bool], hub: str = "hub") -> HubState:
    """Get a hub's state until it is as wanted, and return it. Raises TimeoutError."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            try:
                state = await bus.request(hub, HubDescribe(), HubState, 1.0)
            except RequestError:
                continue
            if wanted(state):
                return state


async def next_message(
    bus: BusClient, cls: type[M] | tuple[type[M], ...], within_s: float = WITHIN_S
) -> tuple[M, Envelope]:
    """Return the next delivery of this class, and skip others. Raises TimeoutError."""
    async with asyncio.timeout(within_s):
        async for envelope in bus.deliveries():
            if isinstance(envelope.message, cls):
                return envelope.message, envelope
    raise AssertionError("deliveries never end")


async def link(bus: BusClient, *join_endpoints: str) -> HubState:
    """Have the client's hub join at these join ports, and wait until as many links are up."""
    for join_endpoint in join_endpoints:
        await bus.request("hub", PeerDial(join_endpoint), RequestDone, WITHIN_S)
    return await described(bus, lambda state: len(state.peers) >= len(join_endpoints))


async def subscribed(bus: BusClient, hub: str, *topics: str) -> None:
    """Wait until the hub at this address has subscribers of these topics on its node."""
    await described(bus, lambda state: set(topics) <= set(state.subscriptions), hub)


@contextmanager
def dealer_of(node_id: str, endpoint: str) -> Iterator[zmq.Socket[bytes]]:
    """Connect a bare DEALER to an endpoint, with the node's key if that is tcp."""
    with zmq.Context() as context, open_socket(context, zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 2000)
        dealer.setsockopt(zmq.SNDTIMEO, 2000)
        connect(dealer, endpoint, KEYS[node_id])
        yield dealer


def in_time(what: Callable[[], bool], within_s: float = WITHIN_S) -> bool:
    """Return whether `what` becomes true in time."""
    pause, tries = threading.Event(), round(within_s / 0.005)
    return any(what() or pause.wait(0.005) for _ in range(tries))


def kinds(classes: Sequence[type[Message]]) -> list[str]:
    return [kind_of(cls) for cls in classes]


@contextmanager
def hubs(*node_ids: str) -> Iterator[list[RunningHub]]:
    """Run a hub for each of these nodes."""
    with running_hub(node_ids[0]) as first:
        if len(node_ids) == 1:
            yield [first]
            return
        with hubs(*node_ids[1:]) as others:
            yield [first, *others]


@asynccontextmanager
async def clients(running: list[RunningHub], name: str, *topics: type[Message] | str) -> AsyncIterator[list[BusClient]]:
    """Start a client of this name at each hub."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(client(hub.run_dir, hub.node_id, name, *topics)) for hub in running]


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


async def reply_to_probe(bus: BusClient) -> None:
    """Reply to the next probe."""
    _, envelope = await next_message(bus, LinkProbe)
    await bus.send(envelope.header.sender, RequestDone(), cause=envelope.header.id)
