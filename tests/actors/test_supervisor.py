"""The supervisor with real processes: the hub and one actor.

`python -m tests.actors.test_supervisor FOLDER` runs such a node, so that a test can kill its supervisor.
"""

from __future__ import annotations

import asyncio
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil
import pytest

from actors import supervisor as module
from actors.child import last_sentence
from actors.data_dir import DataDir, open_folder
from actors.restart_backoff import BURST
from actors.supervisor import NodeFailed, Supervisor, run_node
from bus.client import BusClient, RequestError
from bus.messages import (
    ActorDown,
    ActorStart,
    ActorStarted,
    ActorStop,
    ActorUp,
    ClusterChanged,
    HubState,
    NodeRecorded,
    PeerAuthenticated,
    PeerRefused,
    RequestDone,
    TopologyGet,
    TopologyState,
)
from cluster.capabilities import DeviceCapabilities
from cluster.failures import FailureCode
from cluster.join_code import new_join_code
from cluster.topology import NodeRecord
from common.config import NodeConfig, read_config, write_config
from common.private_files import write_private
from tests.support.bus import ROOT, client, described, in_time, next_message

ONLY_TOPOLOGY = {"topology": "actors.topology_actor"}
WITHIN_S = 20.0
LINUX_ONLY = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a stopped process stays until it goes on")


@dataclass
class Notes:
    """A screen that keeps its lines."""

    lines: list[str] = field(default_factory=list)
    more: asyncio.Event = field(default_factory=asyncio.Event)

    async def shows(self, text: str) -> None:
        """Wait for a line with this in it."""
        async with asyncio.timeout(WITHIN_S):
            while not any(text in line for line in self.lines):
                self.more.clear()
                await self.more.wait()

    def starting(self, text: str) -> None:
        self.lines.append(text)

    def ready(self, config: NodeConfig, hub: HubState, capabilities: DeviceCapabilities) -> None:
        self.event("ready")

    def progress(self, text: str) -> None:
        self.lines.append(text)

    def event(self, text: str) -> None:
        self.lines.append(text)
        self.more.set()


CODE = new_join_code("home")


def config_of(folder: DataDir, bus_port: int = 0, *, alone: bool = False) -> NodeConfig:
    code_file = folder.path / "join-code"
    write_private(code_file, CODE.text())
    config = NodeConfig(
        cluster="" if alone else CODE.name,
        code_file=str(code_file),
        node_id=folder.node_id,
        name="kitchen",
        incarnation=1,
        run_dir=str(folder.run_dir),
        data_dir=str(folder.path),
        cache_dir=str(folder.path / "models"),
        bus_port=bus_port,
        discovery_port=0,
    )
    write_config(config)
    return config


@dataclass
class RunningNode:
    """A node with its supervisor in this process, and a client at its hub."""

    supervisor: Supervisor
    bus: BusClient
    task: asyncio.Task[None]
    notes: Notes

    async def pid_of(self, name: str, other_than: int = 0) -> int:
        """Return the process id of an actor, once its hub knows one that differs from `other_than`."""

        def there(state: HubState) -> bool:
            return any(actor.name == name and actor.pid != other_than for actor in state.actors)

        state = await described(self.bus, there)
        return next(actor.pid for actor in state.actors if actor.name == name)


@asynccontextmanager
async def node(tmp_path: Path, *, alone: bool = False) -> AsyncIterator[RunningNode]:
    """Run a node; at the end, everything is stopped, and no process may be left."""
    folder = open_folder(tmp_path)
    config, notes = config_of(folder, alone=alone), Notes()
    supervisor = Supervisor(config, BusClient(folder.run_dir, folder.node_id, "supervisor"), folder, notes)
    task = asyncio.create_task(supervisor.run())
    try:
        async with client(folder.run_dir, folder.node_id, "test", ActorUp, ActorDown) as bus:
            await described(bus, lambda state: "supervisor" in [actor.name for actor in state.actors])
            yield RunningNode(supervisor, bus, task, notes)
    finally:
        children = psutil.Process().children(recursive=True)
        supervisor.stop()
        await asyncio.wait_for(task, WITHIN_S)
        folder.close()
        assert not [child for child in children if child.is_running()], "a process is left"


@pytest.fixture(autouse=True)
def only_topology(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ACTORS", ONLY_TOPOLOGY)


def gone(pids: list[int]) -> Callable[[], bool]:
    return lambda: not any(psutil.pid_exists(pid) for pid in pids)


def test_killed_actor_is_restarted(tmp_path: Path) -> None:
    async def main() -> None:
        async with node(tmp_path) as running:
            first = await running.pid_of("topology")
            os.kill(first, signal.SIGKILL)
            down, envelope = await next_message(running.bus, ActorDown)
            assert (down.name, down.reason, down.final) == ("topology", "killed by SIGKILL", False)
            assert envelope.node == running.supervisor.bus.node_id
            assert await running.pid_of("topology", other_than=first) != first
            assert await running.bus.request("topology", TopologyGet(), TopologyState, WITHIN_S)

    asyncio.run(main())


def test_killed_hub_is_restarted_on_the_same_ports(tmp_path: Path) -> None:
    async def main() -> None:
        async with node(tmp_path) as running:
            await running.pid_of("topology")
            before = await described(running.bus, lambda state: True)
            first = next(actor.pid for actor in before.actors if actor.name == "hub")
            os.kill(first, signal.SIGKILL)
            await running.pid_of("hub", other_than=first)
            after = await described(running.bus, lambda state: "topology" in [actor.name for actor in state.actors])
            assert before.join_endpoint
            assert (after.endpoint, after.join_endpoint) == (before.endpoint, before.join_endpoint)
            assert await running.bus.request("topology", TopologyGet(), TopologyState, WITHIN_S)

    asyncio.run(main())


def test_burst_of_deaths_ends_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ACTORS", {"broken": "actors.no_such_module"})
    folder, notes = open_folder(tmp_path), Notes()
    failure = asyncio.run(asyncio.wait_for(run_node(config_of(folder), folder, notes), WITHIN_S))
    assert failure.startswith("broken: exit status 1, see ")
    shown = [line for line in notes.lines if line.startswith("broken")]
    assert len(shown) == BURST - 1, "the last death is the node's failure, which the command prints"
    assert all(line.endswith("it is started again") for line in shown)
    assert "no_such_module" in last_sentence(folder.logs / "broken.log")
    folder.close()


def test_failed_hub_start_ends_the_node(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        folder = open_folder(tmp_path)
        port = taken.getsockname()[1]
        failure = asyncio.run(asyncio.wait_for(run_node(config_of(folder, port), folder, Notes()), WITHIN_S))
        assert failure.startswith("hub: ")
        assert f"cannot listen on 127.0.0.1:{port}: Address already in use; choose another port or host" in failure
        folder.close()


def test_standalone_node_has_no_port_or_discovery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ACTORS", {**ONLY_TOPOLOGY, "discovery": "actors.discovery_actor"})

    async def started(alone: bool) -> tuple[bool, bool]:
        """Return whether the node runs discovery, and whether it listens on a port."""
        async with node(tmp_path, alone=alone) as running:
            await running.pid_of("topology")
            children = [child.cmdline() for child in psutil.Process().children(recursive=True)]
            listening = [c for child in psutil.Process().children() for c in child.net_connections("inet")]
            return any("actors.discovery_actor" in line for line in children), bool(listening)

    assert asyncio.run(started(alone=True)) == (False, False)
    assert asyncio.run(started(alone=False)) == (True, True)


def topologies() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "actors.topology_actor" in child.cmdline()]


def test_node_is_ready_once_all_actors_registered(tmp_path: Path) -> None:
    async def main() -> None:
        async with node(tmp_path) as running:
            assert await asyncio.to_thread(in_time, lambda: bool(topologies()))  # it may be starting
            (topology,) = topologies()
            topology.suspend()
            assert "topology" not in [a.name for a in (await described(running.bus, lambda _: True)).actors]
            own = NodeRecord(running.bus.node_id, "kitchen", 1, 1, DeviceCapabilities(engine="numpy"), "http://here")
            assert await asyncio.to_thread(in_time, lambda: running.bus.has_subscribers(PeerRefused))
            await running.bus.publish(NodeRecorded(own))
            await running.bus.publish(PeerRefused("", FailureCode.REVOKED, "the record was handled"))
            await running.notes.shows("the record was handled")
            assert "ready" not in running.notes.lines
            topology.resume()
            await running.notes.shows("ready")

    asyncio.run(main())


def test_refusals_are_limited_but_not_new_keys(tmp_path: Path) -> None:
    async def main() -> None:
        async with node(tmp_path) as running:
            for kind in (PeerRefused, PeerAuthenticated, ClusterChanged):
                assert await asyncio.to_thread(in_time, partial(running.bus.has_subscribers, kind))
            for _ in range(3):
                await running.bus.publish(PeerRefused("", FailureCode.WRONG_CODE, "ada was refused"))
            await running.bus.publish(PeerRefused("", FailureCode.REVOKED, "eve was refused"))
            await running.bus.publish(PeerAuthenticated("", "b" * 16, "bob"))
            await running.bus.publish(PeerAuthenticated("", "c" * 16, "bob", "bob joined with a new key"))
            await running.bus.publish(ClusterChanged())
            await running.notes.shows("join code of cluster home was changed")
            shown = [line for line in running.notes.lines if "refused" in line or "bob" in line]
            assert shown == ["ada was refused", "eve was refused", "bob joined with a new key"]

    asyncio.run(main())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows the limits of another process")
def test_processes_raise_their_limit_of_open_files(tmp_path: Path) -> None:
    soft, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = min(most, 512)
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, most))
    try:
        allowed = asyncio.run(file_limits(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, most))
    assert few < most, "this machine grants too few files for this test"
    assert allowed == {"hub": most, "topology": most}


async def file_limits(tmp_path: Path) -> dict[str, int]:
    async with node(tmp_path) as running:
        pids = {name: await running.pid_of(name) for name in ("hub", "topology")}
        return {name: psutil.Process(pid).rlimit(psutil.RLIMIT_NOFILE)[0] for name, pid in pids.items()}


def test_engines_start_and_end_on_request(tmp_path: Path) -> None:
    async def main() -> None:
        async with node(tmp_path) as running:
            engines = [await running.bus.request("supervisor", ActorStart(), ActorStarted, WITHIN_S) for _ in range(2)]
            assert [engine.name for engine in engines] == ["engine-1", "engine-2"]
            assert all(psutil.pid_exists(engine.pid) for engine in engines)
            await running.bus.request("supervisor", ActorStop("engine-1"), RequestDone, WITHIN_S)
            assert not psutil.pid_exists(engines[0].pid)
            await running.bus.request("supervisor", ActorStop("engine-1"), RequestDone, WITHIN_S)
            os.kill(engines[1].pid, signal.SIGKILL)
            down, _ = await next_message(running.bus, ActorDown)
            assert (down.name, down.final) == ("engine-2", True)

    asyncio.run(main())


def test_engine_that_cannot_start_is_reported_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ENGINE", "actors.no_such_module")

    async def main() -> None:
        async with node(tmp_path) as running:
            with pytest.raises(RequestError, match=r"engine-1 did not start; see .*engine-1\.log"):
                await running.bus.request("supervisor", ActorStart(), ActorStarted, module.START_TIMEOUT_S)

    asyncio.run(main())


def test_node_stops_within_three_seconds(tmp_path: Path) -> None:
    async def main() -> None:
        async with node(tmp_path) as running:
            await running.pid_of("topology")
            begun = asyncio.get_running_loop().time()
            running.supervisor.stop()
            await asyncio.wait_for(running.task, WITHIN_S)
            assert asyncio.get_running_loop().time() - begun < 3.0

    asyncio.run(main())


@pytest.mark.parametrize("stopped", [False, pytest.param(True, marks=LINUX_ONLY)])
def test_killed_supervisor_ends_processes_within_two_seconds(tmp_path: Path, stopped: bool) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.actors.test_supervisor", str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    pids: list[int] = []
    try:
        assert process.stdout is not None
        run_dir = Path(process.stdout.readline().decode().strip())
        state = asyncio.run(_state(run_dir))
        pids = [actor.pid for actor in state.actors if actor.name in ("hub", "topology")]
        assert len(pids) == 2
        for pid in pids if stopped else []:
            os.kill(pid, signal.SIGSTOP)
        process.kill()
        assert in_time(gone(pids), within_s=2.0)
    finally:
        process.kill()
        process.communicate(timeout=WITHIN_S)
        for pid in pids:
            if psutil.pid_exists(pid):
                os.kill(pid, signal.SIGKILL)
        open_folder(tmp_path).close()  # removes what the killed node left


async def _state(run_dir: Path) -> HubState:
    async with client(run_dir, read_config(run_dir).node_id, "test") as bus:
        return await described(bus, lambda state: "topology" in [actor.name for actor in state.actors])


def test_hub_that_never_answers_fails_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HUB", "actors.device_probe")  # ends at once: it has no arguments
    monkeypatch.setattr(module, "START_TIMEOUT_S", 0.5)

    async def main() -> None:
        folder = open_folder(tmp_path)
        bus = BusClient(folder.run_dir, folder.node_id, "supervisor")
        with pytest.raises(NodeFailed, match=r"the hub did not start within 0\.5 s; see "):
            await Supervisor(config_of(folder), bus, folder, Notes()).run()
        folder.close()

    asyncio.run(main())


def test_late_start_ends_the_node_with_what_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READY_TIMEOUT_S", 0.0)
    folder = open_folder(tmp_path)
    failure = asyncio.run(asyncio.wait_for(run_node(config_of(folder), folder, Notes()), WITHIN_S))
    assert re.fullmatch(
        r"the node was not ready within 0 s: it lacks (topology|an API that listens and an engine that was measured); "
        rf"see the logs in {folder.logs}, and start it again",
        failure,
    )
    folder.close()


def test_process_that_cannot_be_started_ends_the_node(tmp_path: Path) -> None:
    folder, notes = open_folder(tmp_path), Notes()
    (folder.logs / "hub.log").mkdir()  # in the way of its log, as a full disk would be
    failure = asyncio.run(asyncio.wait_for(run_node(config_of(folder), folder, notes), WITHIN_S))
    assert failure == "hub: it cannot be started: Is a directory"
    assert notes.lines.count("hub ended (it cannot be started: Is a directory); it is started again") == BURST - 1
    folder.close()


def test_removed_run_folder_is_made_again(tmp_path: Path) -> None:
    async def main() -> None:
        async with node(tmp_path) as running:
            await running.pid_of("topology")
            run_dir = Path((tmp_path / "run").read_text())
            settings = (run_dir / "node.json").read_bytes()
            await running.supervisor.keep_run_folder()
            shutil.rmtree(run_dir)
            await running.notes.shows(f"the socket of hub was removed from {run_dir}")
            await running.notes.shows("hub ended (its socket was removed); it is started again")
            assert (run_dir / "node.json").read_bytes() == settings
            async with client(run_dir, running.supervisor.bus.node_id, "after") as bus:
                await described(bus, lambda state: {"topology", "supervisor"} <= {actor.name for actor in state.actors})
                assert await bus.request("topology", TopologyGet(), TopologyState, WITHIN_S)

    asyncio.run(main())


def test_run_folder_that_another_took_ends_the_node(tmp_path: Path) -> None:
    async def main() -> None:
        async with node(tmp_path) as running:
            run_dir = Path((tmp_path / "run").read_text())
            shutil.rmtree(run_dir)
            os.symlink(tmp_path, run_dir)
            await asyncio.wait_for(running.task, WITHIN_S)
            assert running.supervisor.failure == (
                f"the run folder {run_dir} was removed (it is not this user's alone); start the node again"
            )
            os.unlink(run_dir)

    asyncio.run(main())


def main(path: Path) -> None:
    """Run a node in a folder; the first line of output is its run folder."""
    module.ACTORS = ONLY_TOPOLOGY
    folder = open_folder(path)
    config = config_of(folder)
    print(folder.run_dir, flush=True)
    asyncio.run(run_node(config, folder, Notes()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
