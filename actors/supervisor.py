"""The supervisor of a node: starts its processes, restarts those that die, and stops them together.

It computes nothing and holds no state of the cluster. Its only socket is its connection to the hub, over which the node
actor requests engine processes.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from contextlib import suppress

import msgspec

from actors.child import Child
from actors.cluster_events import describe
from actors.data_dir import DataDir
from actors.freeze_watch import LOOK_EVERY_S, REPLY_S, FreezeWatch, Sight
from actors.run_folder import RunFolder
from actors.screen import Screen
from bus.actor import Actor, every, on
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
    Fact,
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
from bus.net.endpoints import port_of
from bus.process import CANNOT_START, allow_many_files
from bus.wire import Envelope
from cluster.capabilities import DeviceCapabilities
from cluster.failures import FailureCode
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
NEEDED = ("an API that listens", "an engine that was measured")  # once all actors are registered
START_TIMEOUT_S = 15.0  # of one process
READY_TIMEOUT_S = 180.0  # of the node; measuring the engines may take half of it
KEEP_EVERY_S = 2.0
REPEAT_REFUSAL_AFTER_S = 60.0


class NodeFailed(Exception):
    """The node cannot run; the message is one sentence with the next step."""


class Supervisor(Actor):
    """Serves `actor.start` and `actor.stop`, and shows what happens on a screen."""

    name = "supervisor"

    def __init__(self, config: NodeConfig, bus: BusClient, folder: DataDir, screen: Screen) -> None:
        super().__init__(bus)
        self._config = config
        self._folder = folder
        self._screen = screen
        self._hub: HubState
        self._capabilities: DeviceCapabilities | None = None  # of this node, once its gateway listens
        self._shown = False
        self._ready_by = time.monotonic() + READY_TIMEOUT_S
        self._run_folder = RunFolder(config.run_path)
        self._names: dict[str, str] = {}  # node id -> name, from the nodes' records
        self._children: dict[str, Child] = {}
        self._runs: dict[str, asyncio.Task[None]] = {}  # by child: runs it again and again until it is given up
        self._engines = 0
        self._freezes = FreezeWatch()
        self._refusals = RateLimit(REPEAT_REFUSAL_AFTER_S)
        self.failure: str = ""

    async def started(self) -> None:
        """Start the hub, then the actors. Raises NodeFailed if the hub cannot run."""
        self._screen.starting(f"starting node {self._config.name}")
        self._add("hub", HUB)
        self._hub = await self._hub_ready()
        self._keep_ports(self._hub)
        for name, module in ACTORS.items():
            if name != "discovery" or self._config.cluster:  # a node that stands alone looks for no others
                self._add(name, module)

    async def stopping(self) -> None:
        """Stop the actors first and the hub last, so that their last messages are delivered."""
        for run in self._runs.values():
            run.cancel()
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
            return ActorStarted(child.name, await self._registered(child))
        except BaseException:  # it was too slow, or the request was cancelled
            await asyncio.shield(self._remove(child.name))
            raise

    @on(ActorStop)
    async def stop_engine(self, message: ActorStop, envelope: Envelope) -> RequestDone:
        """End an engine process; it is no error if that has ended already."""
        await self._remove(message.name)
        return RequestDone()

    @on(ActorUp)
    async def actor_up(self, message: ActorUp, envelope: Envelope) -> None:
        """Record that a child process is registered with the hub."""
        child = self._children.get(message.name)
        if child and not child.registered.done():
            child.registered.set_result(message.pid)
        self._show_if_ready()

    # -- what the owner sees

    @on(NodeRecorded)
    async def recorded(self, message: NodeRecorded, envelope: Envelope) -> None:
        """Take the name of a node from its record, and of this node whether its engine is chosen."""
        self._names[envelope.node] = message.record.name
        if envelope.node == self.bus.node_id and message.record.api and message.record.capabilities.engine:
            self._capabilities = message.record.capabilities
            self._show_if_ready()

    def _show_if_ready(self) -> None:
        """Show once that the gateway listens, the engine is chosen and every actor can be reached."""
        actors = [child for name, child in self._children.items() if name in ACTORS]
        if self._capabilities and not self._shown and all(child.registered.done() for child in actors):
            self._shown = True
            self._screen.ready(self._config, self._hub, self._capabilities)

    @every(KEEP_EVERY_S)
    async def end_late_start(self) -> None:
        """End the node if it is not ready in time, with what it lacks as its failure."""
        if self._shown or time.monotonic() < self._ready_by:
            return
        lacking = [name for name, child in self._children.items() if name in ACTORS and not child.registered.done()]
        self._fail(
            f"the node was not ready within {READY_TIMEOUT_S:g} s: it lacks {' and '.join(lacking or NEEDED)}; "
            f"see the logs in {self._folder.logs}, and start it again"
        )

    @every(KEEP_EVERY_S)
    async def keep_run_folder(self) -> None:
        """Restore what was removed from the run folder; a process without its socket is started again."""
        try:
            bereft = self._run_folder.keep(time.monotonic())
        except OSError as error:
            self._fail(f"the run folder {self._config.run_dir} was removed ({error.strerror}); start the node again")
            return
        for child in [child for name, child in self._children.items() if name in bereft]:
            self._screen.event(f"the socket of {child.name} was removed from {self._config.run_dir}")
            child.kill("its socket was removed")

    def _fail(self, sentence: str) -> None:
        """End the node, with a sentence for its owner."""
        self.failure = sentence
        self.stop()

    @on(PeerUp, PeerDown, PeerAuthenticated, ClusterChanged, InstanceUp)
    async def show(self, message: Fact, envelope: Envelope) -> None:
        """Show what happens in the cluster."""
        if sentence := describe(message, self._names, self._config.cluster):
            self._screen.event(sentence)

    @on(PeerRefused)
    async def peer_refused(self, message: PeerRefused, envelope: Envelope) -> None:
        """Show a refusal. Any machine can cause them, so the same sentence appears once a minute at most."""
        if self._refusals.pass_on(message.message, time.monotonic()) is not None:
            self._screen.event(message.message)

    @on(DownloadProgress)
    async def download_progress(self, message: DownloadProgress, envelope: Envelope) -> None:
        """Show the progress of this node's downloads."""
        if envelope.node == self.bus.node_id and message.total_bytes:
            done, total = message.done_bytes / 1e6, message.total_bytes / 1e6
            self._screen.progress(f"fetching {message.model_id}: {done:.0f} of {total:.0f} MB")

    @on(DownloadFailed)
    async def download_failed(self, message: DownloadFailed, envelope: Envelope) -> None:
        """Show why a download of this node failed."""
        if envelope.node == self.bus.node_id:
            self._screen.event(message.message)

    # -- processes

    def _add(self, name: str, module: str, threads: int = 1) -> Child:
        child = Child(name, module, self._config, self._folder.logs / f"{name}.log", threads)
        self._children[name] = child
        self._runs[name] = asyncio.create_task(self._run(child))
        return child

    async def _remove(self, name: str) -> None:
        run = self._runs.pop(name, None)
        child = self._children.pop(name, None)
        if run:
            run.cancel()
        if child:
            await child.stop()

    async def _run(self, child: Child) -> None:
        """Run a child, and start it again after each death, until it is stopped or given up."""
        while True:
            try:
                status, lifetime_s = await child.run_once()
                reason = child.why_ended(status)
            except OSError as error:
                status, lifetime_s, reason = 1, 0.0, f"it cannot be started: {error.strerror}"
            if child.stopped:
                return
            child.restarts = child.restarts.died(time.monotonic(), lifetime_s)
            is_engine = child.name.startswith("engine")  # the node actor starts engines, so it decides about them
            final = status == CANNOT_START or child.restarts.exhausted or is_engine
            await self._report(child.name, reason, final=final, fatal=final and not is_engine)
            if final:
                return
            await asyncio.sleep(child.restarts.pause)

    @every(LOOK_EVERY_S)
    async def end_frozen(self) -> None:
        """Kill the processes that do not respond; each is then started again, or reported, like any that ends."""
        begun = time.monotonic()
        sights = await self._sights()
        for name, silent_s in self._freezes.look(begun, time.monotonic(), sights).items():
            self._children[name].kill(f"it did not respond for {silent_s:g} s")

    async def _sights(self) -> dict[str, Sight]:
        """Return what is seen of the actors that are registered with the hub, and of the hub whether it replies."""
        silent = {"hub": math.inf}
        with suppress(RequestError):
            actors = (await self.bus.request("hub", HubDescribe(), HubState, REPLY_S)).actors
            pids = {name: child.pid for name, child in self._children.items()}
            silent = {actor.name: actor.silent_s for actor in actors if pids.get(actor.name) == actor.pid}
        sights = {name: self._children[name].sight(silent_s) for name, silent_s in silent.items()}
        return {name: sight for name, sight in sights.items() if sight}

    async def _report(self, name: str, reason: str, *, final: bool, fatal: bool) -> None:
        """Report a death to the log, the owner and the bus. A `fatal` one ends the node, with `reason` as its failure.

        The command prints the failure at its end, so a fatal death is not shown on the screen as well.
        """
        logger.warning("%s ended (%s)", name, reason)
        if fatal:
            self._fail(f"{name}: {reason}")
        else:
            self._screen.event(f"{name} ended ({reason}){'' if final else '; it is started again'}")
        await self.bus.publish(ActorDown(name, reason, final))

    async def _hub_ready(self) -> HubState:
        """Wait until the hub answers. Raises NodeFailed if it is given up, or takes too long."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and not self.failure:
            with suppress(RequestError):
                return await self.bus.request("hub", HubDescribe(), HubState, 0.25)
        raise NodeFailed(self.failure or f"the hub did not start within {START_TIMEOUT_S:g} s; see {self._folder.logs}")

    def _keep_ports(self, hub: HubState) -> None:
        """Write the hub's ports into the settings, so that a restarted hub takes the same: other nodes know them.

        Raises NodeFailed if there is no room for them.
        """
        bus_port, join_port = port_of(hub.endpoint), port_of(hub.join_endpoint)
        config = self._config
        self._config = msgspec.structs.replace(
            config, bus_port=bus_port or config.bus_port, join_port=join_port or config.join_port
        )
        try:
            write_config(self._config)
        except OSError as error:
            raise NodeFailed(
                f"the run folder {config.run_dir} cannot be written ({error.strerror}); make room, and start again"
            ) from None

    async def _registered(self, child: Child) -> int:
        """Wait until the hub knows a child; return its process id. Raises RequestError if it ends or is too slow."""
        registered_or_ended: list[asyncio.Future[int] | asyncio.Task[None]] = [child.registered, self._runs[child.name]]
        await asyncio.wait(registered_or_ended, timeout=START_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
        if child.registered.done():
            return child.registered.result()
        raise RequestError(
            FailureCode.INTERNAL, f"{child.name} did not start; see {self._folder.logs / child.name}.log"
        )


async def run_node(config: NodeConfig, folder: DataDir, screen: Screen) -> str:
    """Run a node until it is stopped. Returns one sentence if it failed, else an empty string."""
    allow_many_files()
    bus = BusClient(config.run_path, config.node_id, Supervisor.name)
    supervisor = Supervisor(config, bus, folder, screen)
    try:
        await supervisor.run()
    except NodeFailed as error:
        return str(error)
    return supervisor.failure
