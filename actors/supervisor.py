"""The supervisor of a node: starts the processes, starts the dead ones again, stops them together.

It never computes and holds no state of the cluster; its only socket is its line to the hub, over which the node
actor asks for more engine processes.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from actors.node_folder import NodeFolder
from bus.actor import Actor, on
from bus.client import BusClient, RequestError
from bus.config import NodeConfig
from bus.messages import (
    ActorDown,
    ActorStart,
    ActorStarted,
    ActorStop,
    ActorUp,
    DownloadFailed,
    DownloadProgress,
    HubDescribe,
    HubState,
    InstanceUp,
    NodeRecorded,
    PeerDown,
    PeerUp,
    RequestDone,
)
from bus.process import ADDRESS_VARIABLE, CANNOT_START, NAME_VARIABLE
from bus.wire import Envelope
from cluster.capabilities import DeviceCapabilities
from cluster.restarts import Restarts

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
STOP_WITHIN_S = 2.0  # then the process group is killed
START_WITHIN_S = 15.0


class NodeFailed(Exception):
    """The node cannot run; the message is one sentence with the next step."""


class Child:
    """One process of the node, with its module and the history of its deaths."""

    def __init__(self, name: str, module: str, config: NodeConfig, log: Path) -> None:
        self.name = name
        self.restarts = Restarts()
        self.wanted = True
        self.process: asyncio.subprocess.Process | None = None
        self.known: asyncio.Future[int] = asyncio.get_running_loop().create_future()  # its pid, once the hub met it
        self._module = module
        self._config = config
        self._log = log

    async def live(self) -> tuple[int, float]:
        """Run the process once: its exit status and how long it lived, in seconds."""
        begun = time.monotonic()
        with open(self._log, "ab", buffering=0) as log:  # noqa: ASYNC230 - a local file, once a start
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                self._module,
                stdin=asyncio.subprocess.PIPE,  # its end tells the child that we are gone
                stdout=log,
                stderr=log,
                env=_environment(self._config, self.name),
                start_new_session=True,
            )
        return await self.process.wait(), time.monotonic() - begun

    async def stop(self) -> None:
        """Ask it to end, and kill its group where it does not."""
        self.wanted = False
        process = self.process
        if process is None or process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(asyncio.shield(process.wait()), STOP_WITHIN_S)
        except TimeoutError:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


def _environment(config: NodeConfig, name: str) -> Mapping[str, str]:
    threads = str(config.threads) if name.startswith("engine") else "1"
    limits = dict.fromkeys(
        ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), threads
    )
    return {
        **os.environ,
        **limits,
        ADDRESS_VARIABLE: config.run_dir,
        NAME_VARIABLE: name,
        "TOKENIZERS_PARALLELISM": "false",
    }


class Supervisor(Actor):
    """Serves `actor.start` and `actor.stop`; everything else it does on its own."""

    name = "supervisor"

    def __init__(self, config: NodeConfig, bus: BusClient, folder: NodeFolder, screen: Screen) -> None:
        super().__init__(bus)
        self._config = config
        self._folder = folder
        self._screen = screen
        self._hub: HubState
        self._shown = False
        self._children: dict[str, Child] = {}
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._engines = 0
        self.failure: str = ""

    async def started(self) -> None:
        """Start the hub, then the actors. Raises NodeFailed where the hub cannot run."""
        self._screen.starting(f"starting node {self._config.name}")
        self._add("hub", HUB)
        self._hub = await self._hub_answers()
        for name, module in ACTORS.items():
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
        child = self._add(f"engine-{self._engines}", ENGINE)
        pid = await self._known_to_hub(child)
        return ActorStarted(child.name, pid)

    @on(ActorStop)
    async def stop_engine(self, message: ActorStop, envelope: Envelope) -> RequestDone:
        """End an engine process; one that is already gone is no error."""
        keeper = self._keepers.pop(message.name, None)
        child = self._children.pop(message.name, None)
        if keeper:
            keeper.cancel()
        if child:
            await child.stop()
        return RequestDone()

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
        capabilities = message.record.capabilities
        if envelope.node == self.bus.node_id and message.record.api and capabilities.engine and not self._shown:
            self._shown = True
            self._screen.ready(self._config, self._hub, capabilities)

    @on(PeerUp)
    async def peer_up(self, message: PeerUp, envelope: Envelope) -> None:
        """Another node is linked."""
        self._screen.event(f"node {message.name} joined ({message.endpoint})")

    @on(PeerDown)
    async def peer_down(self, message: PeerDown, envelope: Envelope) -> None:
        """Another node is gone."""
        self._screen.event(f"node {message.node_id} is gone: {message.reason}")

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
        instance = message.instance
        shares = ", ".join(
            f"{stage.node_id} layers {s.start_layer}-{s.end_layer - 1}"
            for stage in instance.stages
            for s in [stage.shard]
        )
        self._screen.event(f"{instance.model_id} is loaded: {shares}")

    # -- processes

    def _add(self, name: str, module: str) -> Child:
        child = Child(name, module, self._config, self._folder.logs / f"{name}.log")
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

    async def _known_to_hub(self, child: Child) -> int:
        try:
            async with asyncio.timeout(START_WITHIN_S):
                return await child.known
        except TimeoutError:
            complaint = f"{child.name} did not start within {START_WITHIN_S:g} s; see {self._folder.logs}"
            raise RequestError("internal", complaint) from None


def last_sentence(log: Path) -> str:
    """The last line of a log, without its date, level and logger."""
    lines = log.read_text(errors="replace").strip().splitlines() or ["no word in its log"]
    return lines[-1].split(": ", 1)[-1]


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


async def run_node(config: NodeConfig, folder: NodeFolder, screen: Screen) -> str:
    """Run a node until it is told to stop. Returns one sentence why it failed, or nothing."""
    bus = BusClient(config.run_path, config.node_id, Supervisor.name)
    supervisor = Supervisor(config, bus, folder, screen)
    try:
        await supervisor.run()
    except NodeFailed as error:
        return str(error)
    return supervisor.failure
