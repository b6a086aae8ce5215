"""A ring of real nodes for fault runs: started, examined and stopped. It knows the process ids of every actor.

The nodes run the model of `tests.faults.model` in an order that their `--memory` gives, with keys that choose the
placer. With a cable, the last node is in a network namespace of its own.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any

import psutil

from actors.supervisor import ACTORS, ENGINE, HUB
from bus.net.keys import KeyPair
from common.config import KEY_FILE
from common.private_files import write_private
from models.cache import default_cache_root
from tests.faults.cells import Cell, Layout, Place, Target
from tests.faults.clients import ask, connection
from tests.faults.model import QUESTION, keys_of_nodes
from tests.support.network.network_capture import Side, wire
from tests.support.nodes import CODE, STOP_TIMEOUT_S, NodeProcess, free_udp_port

MODULES = {Target.HUB: HUB, Target.ENGINE: ENGINE, Target.NODE_ACTOR: ACTORS["node"]} | {
    target: ACTORS[target] for target in (Target.GATEWAY, Target.TOPOLOGY, Target.DISCOVERY, Target.DOWNLOAD)
}
MEMORY = {Place.FIRST: "1.5GiB", Place.MIDDLE: "1.25GiB", Place.LAST: "1GiB"}  # the largest node has the first layers
FORMED_WITHIN_S = 30.0
LOOK_EVERY_S = 0.2


@dataclass
class Member:
    """One node of a ring, and the side of the cable on which it is, if there is one."""

    place: Place
    key: KeyPair
    side: Side | None
    command: Callable[[], NodeProcess]
    node: NodeProcess
    processes: set[psutil.Process] = field(default_factory=set)  # all that were ever seen

    def inside(self, do: Callable[[], None]) -> None:
        """Call `do` in the node's network."""
        if self.side:
            self.side.inside(do)
        else:
            do()

    def topology(self) -> dict[str, Any] | None:
        """Return `/v1/topology`, or None if the gateway does not return it at once."""
        found: list[dict[str, Any]] = []

        def get() -> None:
            to = connection(self.node.api, 2.0)
            with suppress(OSError, HTTPException, json.JSONDecodeError):
                to.request("GET", "/v1/topology")
                response = to.getresponse()
                found.extend([json.loads(response.read())] * (response.status == 200))
            to.close()

        self.inside(get)
        return found[0] if found else None

    def chat(self, timeout_s: float = 5.0) -> tuple[int, str]:
        """Ask the question once; return the status and the text."""
        found: list[tuple[int, str]] = []
        self.inside(lambda: found.append(ask(self.node.api, QUESTION, timeout_s)))
        return found[0]

    def running(self) -> list[psutil.Process]:
        """Return all processes of the node, the supervisor first; none if that has ended."""
        with suppress(psutil.NoSuchProcess):
            supervisor = psutil.Process(self.node.process.pid)
            if supervisor.status() != psutil.STATUS_ZOMBIE:
                found = [supervisor, *supervisor.children(recursive=True)]
                self.processes.update(found)
                return found
        return []

    def of(self, target: Target) -> list[psutil.Process]:
        """Return the processes of a target: one or, of an engine, as many as the node has."""
        everything = self.running()
        if target is Target.NODE:
            return everything
        if target is Target.SUPERVISOR:
            return everything[:1]
        return [process for process in everything[1:] if _module(process) == MODULES[target]]


def _module(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        command = process.cmdline()
        if "-m" in command[:-1]:
            return command[command.index("-m") + 1]
    return ""


class Ring:
    """A ring of nodes that run."""

    def __init__(self, layout: Layout, temporary: Sequence[Path]) -> None:
        self.layout = layout
        self.members: dict[Place, Member] = {}
        self._temporary = temporary  # where the nodes make their run folders

    def processes(self, cell: Cell) -> list[psutil.Process]:
        """Return the processes of a cell's target. Raises AssertionError if there is none."""
        found = self.members[cell.place].of(cell.target)
        assert found, f"the {cell.place} node has no {cell.target} process"
        return found

    def plug(self, *, connected: bool) -> None:
        """Connect the last node to the cable, or pull it out."""
        side = self.members[Place.LAST].side
        assert side, "this ring has no cable"
        side.plug(connected=connected)

    def form(self, good: str = "", within_s: float = FORMED_WITHIN_S) -> str:
        """Wait until the ring stands as it should and every gateway answers. Returns the answer, which is `good`.

        Nodes that have ended are started again. Raises AssertionError with what is wrong.
        """
        for member in self.members.values():
            if not member.running():
                member.node.stop()  # reads the rest of its output
                member.node = member.command()
                member.node.ready()
        deadline = time.monotonic() + within_s
        while problem := self._problem(good):
            assert time.monotonic() < deadline, problem
            threading.Event().wait(LOOK_EVERY_S)
        return good or self.members[Place.FIRST].chat()[1]

    def _problem(self, good: str) -> str:
        """Return what keeps the ring from being as it was at its start, or nothing."""
        ids = [member.key.node_id for member in self.members.values()]
        for place, member in self.members.items():
            view = member.topology()
            if view is None or len(view["nodes"]) != len(ids):
                return f"the {place} gateway sees {len(view['nodes']) if view else 'no'} nodes"
        for place, member in self.members.items():
            status, text = member.chat()
            if status != 200 or (good and text != good):
                return f"the {place} gateway answers {status}: {text}"
        for place, member in self.members.items():
            view = member.topology() or {"instances": []}
            rings = [[stage["node_id"] for stage in instance["stages"]] for instance in view["instances"]]
            engines = len(member.of(Target.ENGINE))
            if rings != [ids] or engines != 1:
                return f"the {place} node sees {len(rings)} instances, and has {engines} engines"
        return ""

    def left_over(self) -> tuple[str, ...]:
        """Return what is there and belongs to nothing: engines without a stage, stages without an engine, instances."""
        views = {place: view for place, member in self.members.items() if (view := member.topology())}
        found: list[str] = []
        for place, member in self.members.items():
            if not member.running():
                continue
            view = views.get(place) or next(iter(views.values()), {"instances": []})
            stages = [stage for instance in view["instances"] for stage in instance["stages"]]
            held = sum(stage["node_id"] == member.key.node_id for stage in stages)
            engines = len(member.of(Target.ENGINE))
            if engines != held:
                found.append(f"{place}: engines {engines}, stages {held}")
        most = max((len(view["instances"]) for view in views.values()), default=0)
        return (*found, *([f"ring: {most} instances"] if most > 1 else []))

    def stale_folders(self) -> int:
        """Return how many run folders there are beyond one for each running node."""
        folders = [entry for folder in self._temporary for entry in folder.glob("exobus-*")]
        return len(folders) - sum(bool(member.running()) for member in self.members.values())

    def stop(self) -> tuple[str, ...]:
        """End all nodes as a user would, together, and return what they leave. Kills processes that are left."""
        members = list(self.members.values())
        for process in [process for member in members for process in member.running()]:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)
        for member in members:
            if member.node.process.poll() is None:
                member.node.process.send_signal(signal.SIGINT)
        known = set().union(*(member.processes for member in members))
        alive = [process for process in psutil.wait_procs(known, STOP_TIMEOUT_S)[1] if lives(process)]
        names = sorted({_module(process) or process.name() for process in alive})
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for member in members:
            member.node.stop()
        found = [f"after the end of the ring: {name} runs on" for name in names]
        stale = self.stale_folders()
        return (*found, *([f"after the end of the ring: {stale} run folders"] if stale else []))


def lives(process: psutil.Process) -> bool:
    """Return whether a process runs or is frozen, and has not ended."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextmanager
def ring(layout: Layout, cards: Path) -> Iterator[Ring]:
    """Start a ring, which may not have formed yet, and stop its nodes after the block.

    Skips the test, with the reason, if the layout has a cable and the system makes no network namespaces.
    """
    with ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="xf-", ignore_cleanup_errors=True)))
        sides = stack.enter_context(wire(f"xf{os.getpid()}-{threading.get_native_id()}")) if layout.cable else None
        temporary = [base / name for name in ("a", "b")[: 1 + layout.cable]]
        for folder in temporary:
            folder.mkdir()
        keys = keys_of_nodes(layout.nodes, layout.places.index(layout.placer))
        beacons = free_udp_port()
        started = Ring(layout, temporary)
        stack.callback(started.stop)
        for place, key in zip(layout.places, keys, strict=True):
            far = layout.cable and place is Place.LAST
            command = _command(base, place, beacons, cards, sides, far=far)
            write_private(base / place / KEY_FILE, key.secret.hex())
            started.members[place] = Member(place, key, sides[far] if sides else None, command, command())
        for member in started.members.values():
            member.node.ready()
        yield started


def _command(
    base: Path, place: Place, beacons: int, cards: Path, sides: tuple[Side, Side] | None, *, far: bool
) -> Callable[[], NodeProcess]:
    """Return what starts a node. A `far` one is on the other side of the cable, with folders that its peers lack."""
    own, hidden = (base / "b", base / "a") if far else (base / "a", base / "b")
    side = sides[far] if sides else None
    ports = ["--api-port", "0", "--bus-port", "0", "--join-port", "0", "--discovery-port", str(beacons)]
    engine = ["--engine", "numpy", "--threads", "1", "--memory", MEMORY[place], "--cards", str(cards)]
    host = ["--host", side.address] if side else []
    environment = {"EXOBUS_CACHE": str(default_cache_root()), "EXOBUS_JOIN": CODE.text(), "TMPDIR": str(own)}

    def start() -> NodeProcess:
        def wrapped(*command: str) -> list[str]:
            return side.command(*command, hidden=hidden) if side else list(command)

        return NodeProcess(base / place, ["--name", place, *ports, *engine, *host], environment, wrapped)

    return start
