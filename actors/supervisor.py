"""The supervisor of a node: starts the processes, starts the dead ones again, stops them together.

It never computes and holds no state of the cluster; its only socket is its line to the hub, over which the node
actor asks for more engine processes.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from contextlib import suppress
from typing import Protocol

import msgspec

from actors.child import Child, last_sentence
from actors.data_dir import DataDir
from bus.actor import Actor, on
from bus.client import BusClient, RequestError
from bus.messages import (
    ActorDown,
    ActorStart,
    ActorStarted,
    ActorStop,
    ActorUp,
    ClusterChanged,
    DownloadFailed,
    DownloadProgress,
    HubDescribe,
    HubState,
    InstanceUp,
    NodeRecorded,
    PeerAuthenticated,
    PeerDown,
    PeerRefused,
    PeerUp,
    RequestDone,
)
from bus.net.endpoints import address_of
from bus.process import CANNOT_START, allow_many_files
from bus.wire import Envelope
from cluster.capabilities import DeviceCapabilities
from cluster.failures import FailureCode
from cluster.roles import Role
from common.config import NodeConfig, write_config
from common.rate_limit import RateLimit

logger = logging.getLogger(__name__)

HUB = "bus.hub"
ACTORS = {
    "node": "actors.node_actor",
    "gateway": "gateway",
    "topology": "actors.topology_actor",
    "discovery": "actors.discovery_actor",
    "download": "actors.download_actor",
}
ENGINE = "actors.engine_actor"
START_WITHIN_S = 15.0
SAY_AGAIN_S = 60.0


class NodeFailed(Exception):
    """The node cannot run; the message is one sentence with the next step."""


class Supervisor(Actor):
    """Serves `actor.start` and `actor.stop`; everything else it does on its own."""

    name = "supervisor"

    def __init__(self, config: NodeConfig, bus: BusClient, folder: DataDir, screen: Screen) -> None:
        super().__init__(bus)
        self._config = config
        self._folder = folder
        self._screen = screen
        self._hub: HubState
        self._shown = False
        self._names: dict[str, str] = {}  # node id -> name, as their records say
        self._children: dict[str, Child] = {}
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._engines = 0
        self._refusals = RateLimit(SAY_AGAIN_S)
        self.failure: str = ""

    async def started(self) -> None:
        """Start the hub, then the actors. Raises NodeFailed where the hub cannot run."""
        self._screen.starting(f"starting node {self._config.name}")
        self._add("hub", HUB)
        self._hub = await self._hub_answers()
        self._keep_ports(self._hub)
        for name, module in ACTORS.items():
            if name != "discovery" or self._config.cluster:  # a node that stands alone looks for nobody
                self._add(name, module)

    async def stopping(self) -> None:
        """Actors first, the hub last, so that good-byes get out."""
        for keeper in self._keepers.values():
            keeper.cancel()
        hub = self._children.pop("hub", None)
        await asyncio.gather(*(child.stop() for child in self._children.values()))
        if hub:
            await hub.stop()

    @on(ActorStart)
    async def start_engine(self, message: ActorStart, envelope: Envelope) -> ActorStarted:
        """Start one more engine process and wait until the hub knows it."""
        self._engines += 1
        child = self._add(f"engine-{self._engines}", ENGINE, message.threads)
        try:
            return ActorStarted(child.name, await self._known_to_hub(child))
        except BaseException:  # too slow, or nobody wants it any more
            await asyncio.shield(self._end(child.name))
            raise

    @on(ActorStop)
    async def stop_engine(self, message: ActorStop, envelope: Envelope) -> RequestDone:
        """End an engine process; one that is already gone is no error."""
        await self._end(message.name)
        return RequestDone()

    async def _end(self, name: str) -> None:
        keeper = self._keepers.pop(name, None)
        child = self._children.pop(name, None)
        if keeper:
            keeper.cancel()
        if child:
            await child.stop()

    @on(ActorUp)
    async def actor_up(self, message: ActorUp, envelope: Envelope) -> None:
        """A child of ours is on the bus."""
        child = self._children.get(message.name)
        if child and not child.known.done():
            child.known.set_result(message.pid)

    # -- what the owner sees

    @on(NodeRecorded)
    async def recorded(self, message: NodeRecorded, envelope: Envelope) -> None:
        """Our own node is ready when its gateway answers and its engine is chosen."""
        self._names[envelope.node] = message.record.name
        capabilities = message.record.capabilities
        if envelope.node == self.bus.node_id and message.record.api and capabilities.engine and not self._shown:
            self._shown = True
            self._screen.ready(self._config, self._hub, capabilities)

    @on(PeerUp)
    async def peer_up(self, message: PeerUp, envelope: Envelope) -> None:
        """Another node is linked."""
        role = "" if message.role is Role.MEMBER else f" as {message.role}"
        self._screen.event(f"node {message.name} joined{role} ({address_of(message.endpoint).removeprefix('tcp://')})")

    @on(PeerDown)
    async def peer_down(self, message: PeerDown, envelope: Envelope) -> None:
        """Another node is gone."""
        self._screen.event(f"node {self._name(message.node_id)} is gone: {message.reason}")

    @on(PeerAuthenticated)
    async def peer_met(self, message: PeerAuthenticated, envelope: Envelope) -> None:
        """Somebody was let in; where its name was another key's, the owner should know."""
        if message.warning:
            self._screen.event(message.warning)

    @on(PeerRefused)
    async def peer_refused(self, message: PeerRefused, envelope: Envelope) -> None:
        """Somebody was not let in. Outsiders can cause it, so the same is said once a minute."""
        if self._refusals.pass_on(message.message, time.monotonic()) is not None:
            self._screen.event(message.message)

    @on(ClusterChanged)
    async def cluster_changed(self, message: ClusterChanged, envelope: Envelope) -> None:
        """The join code is another one."""
        cluster = self._config.cluster
        self._screen.event(
            f"the join code of cluster {cluster} was changed; `exobus cluster invite` prints the new one"
        )

    @on(DownloadProgress)
    async def download_progress(self, message: DownloadProgress, envelope: Envelope) -> None:
        """Our own downloads."""
        if envelope.node == self.bus.node_id and message.total_bytes:
            done, total = message.done_bytes / 1e6, message.total_bytes / 1e6
            self._screen.progress(f"fetching {message.model_id}: {done:.0f} of {total:.0f} MB")

    @on(DownloadFailed)
    async def download_failed(self, message: DownloadFailed, envelope: Envelope) -> None:
        """Our own downloads."""
        if envelope.node == self.bus.node_id:
            self._screen.event(message.message)

    @on(InstanceUp)
    async def instance_up(self, message: InstanceUp, envelope: Envelope) -> None:
        """A model stands somewhere in the cluster."""
        shares = ", ".join(f"{self._name(s.node_id)} {len(s.shard.layers)}" for s in message.instance.stages)
        self._screen.event(f"{message.instance.model_id} is loaded, layers by node: {shares}")

    def _name(self, node_id: str) -> str:
        return self._names.get(node_id, node_id)

    # -- processes

    def _add(self, name: str, module: str, threads: int = 1) -> Child:
        child = Child(name, module, self._config, self._folder.logs / f"{name}.log", threads)
        self._children[name] = child
        self._keepers[name] = asyncio.create_task(self._keep(child))
        return child

    async def _keep(self, child: Child) -> None:
        """Run a child, and again after its death, until it is unwanted or past help."""
        while await self._live_once(child):  # noqa: ASYNC110 - the pause is the back-off
            await asyncio.sleep(child.restarts.pause)

    async def _live_once(self, child: Child) -> bool:
        """Run a child to its end; whether it should be started again."""
        status, lived = await child.live()
        if not child.wanted:
            return False
        child.restarts = child.restarts.died(time.monotonic(), lived)
        final = status == CANNOT_START or child.restarts.exhausted or child.name.startswith("engine")
        await self._report(child, status, final)
        return not final

    async def _report(self, child: Child, status: int, final: bool) -> None:
        reason = self._reason(child.name, status)
        logger.warning("%s ended (%s)", child.name, reason)
        self._screen.event(f"{child.name} ended ({reason}){'' if final else '; it is started again'}")
        if final and not child.name.startswith("engine"):
            self.failure = f"{child.name}: {reason}"
            self.stop()
        await self.bus.publish(ActorDown(child.name, reason, final))

    def _reason(self, name: str, status: int) -> str:
        if status == CANNOT_START:
            return last_sentence(self._folder.logs / f"{name}.log")
        if status < 0:
            return f"killed by {signal.Signals(-status).name}"
        return f"exit status {status}, see {self._folder.logs / name}.log"

    async def _hub_answers(self) -> HubState:
        """Wait for the hub; its process may instead end with a sentence why it cannot run."""
        deadline = time.monotonic() + START_WITHIN_S
        while time.monotonic() < deadline and not self.failure:
            with suppress(RequestError):
                return await self.bus.request("hub", HubDescribe(), HubState, 0.25)
        raise NodeFailed(self.failure or f"the hub did not start within {START_WITHIN_S:g} s; see {self._folder.logs}")

    def _keep_ports(self, hub: HubState) -> None:
        """Where any port was free to choose, a hub that is started again takes the same one: others know it."""
        bus, join_endpoint = _port(address_of(hub.endpoint)), _port(hub.join_endpoint)
        config = self._config
        self._config = msgspec.structs.replace(
            config, bus_port=bus or config.bus_port, join_port=join_endpoint or config.join_port
        )
        write_config(self._config)

    async def _known_to_hub(self, child: Child) -> int:
        """The process id, once the hub has met it. Raises RequestError where it ends before, or takes too long."""
        met_or_ended: list[asyncio.Future[int] | asyncio.Task[None]] = [child.known, self._keepers[child.name]]
        await asyncio.wait(met_or_ended, timeout=START_WITHIN_S, return_when=asyncio.FIRST_COMPLETED)
        if child.known.done():
            return child.known.result()
        raise RequestError(
            FailureCode.INTERNAL, f"{child.name} did not start; see {self._folder.logs / child.name}.log"
        )


def _port(address: str) -> int:
    """Of a tcp address; 0 where there is none."""
    return int(address.rpartition(":")[2] or 0)


class Screen(Protocol):
    """Where a node tells its owner what happens."""

    def starting(self, text: str) -> None:
        """The node is not up yet."""

    def ready(self, config: NodeConfig, hub: HubState, capabilities: DeviceCapabilities) -> None:
        """The gateway answers and the engine is chosen."""

    def progress(self, text: str) -> None:
        """One line that replaces the one before it."""

    def event(self, text: str) -> None:
        """A line that stays: a node came or went, a process died."""


async def run_node(config: NodeConfig, folder: DataDir, screen: Screen) -> str:
    """Run a node until it is told to stop. Returns one sentence why it failed, or nothing."""
    allow_many_files()
    bus = BusClient(config.run_path, config.node_id, Supervisor.name)
    supervisor = Supervisor(config, bus, folder, screen)
    try:
        await supervisor.run()
    except NodeFailed as error:
        return str(error)
    return supervisor.failure
