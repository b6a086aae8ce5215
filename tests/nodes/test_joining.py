"""Whole nodes and the join code: which nodes are admitted, why others are not, and what the owner can change."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
import pytest

from bus.client import BusClient, RequestError
from bus.messages import (
    HubDescribe,
    HubState,
    InstanceEnsure,
    InstanceReady,
    MemberRevoke,
    Message,
    NodeRecorded,
    PeerDial,
    PeerDown,
    PeerRefused,
    RequestDone,
    ShardLoad,
    ShardLoaded,
)
from cli.join_codes import kept_code
from cluster.join_code import JoinCode, new_join_code
from cluster.roles import Role
from cluster.shard import Shard
from cluster.topology import RecordNumber
from common.config import KEY_FILE
from models.cache import default_cache_root
from tests.nodes.test_bad_input import CARD
from tests.support.bus import client, next_message
from tests.support.models import write_tiny_llama
from tests.support.nodes import ROOT, NodeProcess, clean_environment, free_udp_port

T = TypeVar("T")

MODEL = "tiny"
CODE, OTHER = new_join_code("home"), new_join_code("home")
REPORT_TIMEOUT_S = 3.0  # a refused node gets the reason
WRONG_HERE = "wrong join code for cluster home: the join port at"
WRONG_THERE = "a node tried to join cluster home with a wrong join code"
REVOKED = "refuses this node's key: it was revoked in cluster home"
COPIED = "runs somewhere else with the same key; if its data folder was copied, delete the file `key`"


@dataclass(frozen=True)
class Home:
    """Starts nodes that have a tiny model and no beacons; all of them stop at the end of the test."""

    folder: Path
    cards: Path
    running: ExitStack

    def node(self, name: str, code: JoinCode | None, *arguments: str, folder: str = "") -> NodeProcess:
        """Start a node, and wait until it is ready."""
        ports = ["--discovery-port", "0", "--api-port", "0", "--bus-port", "0", "--join-port", "0"]
        own = ["--name", name, "--engine", "numpy", "--cards", str(self.cards), *ports, *arguments]
        joining = {"EXOBUS_JOIN": code.text()} if code else {}
        settings = {"EXOBUS_CACHE": str(default_cache_root()), **joining}
        node = NodeProcess(self.folder / (folder or name), own, settings)
        self.running.callback(node.stop)
        node.ready()
        return node

    def pair(self) -> tuple[NodeProcess, NodeProcess]:
        """Start two members, and wait until they are linked."""
        ada = self.node("ada", CODE)
        bob = self.node("bob", CODE, "--peer", ada.join_endpoint)
        joined(ada, bob)
        return ada, bob


@pytest.fixture(scope="module")
def cards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cards")
    model = write_tiny_llama(tmp_path_factory.mktemp("models") / MODEL)
    (folder / f"{MODEL}.toml").write_text(CARD.format(id=MODEL, path=model))
    return folder


@pytest.fixture
def home(tmp_path: Path, cards: Path) -> Iterator[Home]:
    with ExitStack() as running:
        yield Home(tmp_path, cards, running)


def joined(one: NodeProcess, two: NodeProcess) -> None:
    """Wait until each reports that the other joined, and each gateway knows both."""
    for node, other in ((one, two), (two, one)):
        node.line_with(f"node {other.config.name} joined")
        wait_for_nodes(node, {one.config.name, two.config.name})


def wait_for_nodes(node: NodeProcess, names: set[str]) -> None:
    for _ in range(2000):
        if {known["name"] for known in node.get("/v1/topology")["nodes"]} == names:
            return
    raise AssertionError(f"the nodes of the topology never were {names}")


def chat(node: NodeProcess) -> httpx.Response:
    body = {
        "model": MODEL,
        "temperature": 0,
        "max_tokens": 12,
        "messages": [{"role": "user", "content": "What is a ring?"}],
    }
    return httpx.post(f"{node.api}/v1/chat/completions", json=body, timeout=60.0)


def answer(node: NodeProcess) -> str:
    response = chat(node)
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


def holders(node: NodeProcess) -> set[str]:
    """Return the names of the nodes that have layers."""
    return {stage["node"] for placed in node.get("/v1/topology")["instances"] for stage in placed["stages"]}


def exobus(node: NodeProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command as the node's owner."""
    return subprocess.run(
        [sys.executable, "-m", "cli", *arguments],
        cwd=ROOT,
        env={**clean_environment(), "EXOBUS_DATA_DIR": str(node.data_dir)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def done(node: NodeProcess, *arguments: str) -> str:
    """Run a command that must succeed, and return what it prints."""
    command = exobus(node, *arguments)
    assert command.returncode == 0, command.stderr
    return command.stdout


def on_bus(node: NodeProcess, look: Callable[[BusClient], Coroutine[Any, Any, T]], *topics: type[Message]) -> T:
    """Run `look` as an actor of the node, and return its result."""

    async def main() -> T:
        config = node.config
        async with client(config.run_path, config.node_id, "test", *topics) as bus:
            return await look(bus)

    return asyncio.run(main())


def refusals_at_join_port(node: NodeProcess) -> int:
    """Return how many handshakes the join port has refused."""

    async def look(bus: BusClient) -> int:
        state = await bus.request("hub", HubDescribe(), HubState, REPORT_TIMEOUT_S)
        return state.counters.get("refused at join", 0)

    return on_bus(node, look)


def refusal_of(node: NodeProcess, join_endpoint: str) -> PeerRefused:
    """Ask to join at a join port, and return the refusal."""

    async def look(bus: BusClient) -> PeerRefused:
        async with asyncio.timeout(REPORT_TIMEOUT_S):
            await bus.request("hub", PeerDial(f"tcp://{join_endpoint}"), RequestDone, REPORT_TIMEOUT_S)
            return (await next_message(bus, PeerRefused))[0]

    return on_bus(node, look, PeerRefused)


def stays_quiet(node: NodeProcess) -> None:
    """Check that it is refused nowhere for four seconds, in which a node that backs off would ask to join twice."""

    async def look(bus: BusClient) -> None:
        with pytest.raises(TimeoutError):
            await next_message(bus, PeerRefused, within_s=4.0)

    on_bus(node, look, PeerRefused)


def processes(node: NodeProcess) -> list[psutil.Process]:
    return [psutil.Process(node.process.pid), *node.children()]


def listening(node: NodeProcess) -> tuple[set[int], set[int]]:
    """Return the tcp ports on which a node listens, and its udp ports."""
    found = [connection for process in processes(node) for connection in process.net_connections("inet")]
    tcp = {c.laddr.port for c in found if c.status == psutil.CONN_LISTEN}
    return tcp, {c.laddr.port for c in found if c.status == psutil.CONN_NONE}


def api_port(node: NodeProcess) -> int:
    return int(node.api.rpartition(":")[2])


def test_two_nodes_with_one_code_answer_as_one(home: Home) -> None:
    alone = answer(home.node("alone", None))
    ada, bob = home.pair()
    assert answer(ada) == alone
    assert holders(ada) == {"ada", "bob"}
    assert answer(bob) == alone


def test_code_from_a_file_is_needed_once(home: Home) -> None:
    ada = home.node("ada", CODE)
    given = home.folder / "given"
    given.write_text(CODE.text() + "\n")
    given.chmod(0o600)
    bob = home.node("bob", None, "--join", str(given), "--peer", ada.join_endpoint)
    joined(ada, bob)
    bob.stop()
    given.unlink()
    joined(ada, home.node("bob", None, "--peer", ada.join_endpoint))


def test_wrong_code_is_reported_on_both_sides(home: Home) -> None:
    ada, bob = home.node("ada", CODE), home.node("bob", OTHER)
    refused = refusal_of(bob, ada.join_endpoint)
    assert refused.code == "wrong_code"
    assert refused.message.startswith(WRONG_HERE)
    assert "exobus cluster invite" in refused.message
    ada.line_with(WRONG_THERE, REPORT_TIMEOUT_S)
    bob.line_with(WRONG_HERE, REPORT_TIMEOUT_S)
    wait_for_nodes(ada, {"ada"})


def test_node_with_wrong_code_asks_once(home: Home) -> None:
    ada = home.node("ada", CODE)
    bob = home.node("bob", OTHER, "--peer", ada.join_endpoint)
    bob.line_with(WRONG_HERE)
    requests = refusals_at_join_port(ada)
    stays_quiet(bob)
    assert refusals_at_join_port(ada) == requests == 1


def test_revoked_node_is_unlinked_and_refused(home: Home) -> None:
    ada, bob = home.pair()
    assert answer(bob) == answer(ada)
    bob_id = bob.config.node_id

    async def revoke(bus: BusClient) -> PeerDown:
        async with asyncio.timeout(REPORT_TIMEOUT_S):
            await bus.request("hub", MemberRevoke(bob_id), RequestDone, REPORT_TIMEOUT_S)
            return (await next_message(bus, PeerDown))[0]

    assert on_bus(ada, revoke, PeerDown) == PeerDown(bob_id, "its key was revoked", "bob")
    bob.line_with("node ada is gone", REPORT_TIMEOUT_S)
    bob.line_with(REVOKED, REPORT_TIMEOUT_S)
    stays_quiet(bob)
    wait_for_nodes(ada, {"ada"})
    answer(ada)
    assert holders(ada) == {"ada"}
    bob.stop()
    again = home.node("bob", None, "--peer", ada.join_endpoint)
    again.line_with(REVOKED, REPORT_TIMEOUT_S)
    wait_for_nodes(ada, {"ada"})


def test_owner_revokes_and_approves_by_name(home: Home) -> None:
    ada, bob = home.pair()
    assert "is revoked in home" in done(ada, "cluster", "revoke", "bob")
    ada.line_with("is gone: its key was revoked", REPORT_TIMEOUT_S)
    assert "revoked" in done(ada, "cluster", "ls")
    done(ada, "cluster", "approve", "bob")
    bob.stop()
    joined(ada, home.node("bob", None, "--peer", ada.join_endpoint))


def test_copied_data_folder_is_refused(home: Home) -> None:
    ada, bob = home.pair()
    before = answer(ada)
    shutil.copytree(bob.data_dir, home.folder / "copy", ignore=shutil.ignore_patterns("run", "lock", "logs"))
    copy = home.node("bob", None, "--peer", ada.join_endpoint, folder="copy")
    assert copy.config.node_id == bob.config.node_id
    copy.line_with(COPIED, REPORT_TIMEOUT_S)
    ada.line_with("bob was refused", REPORT_TIMEOUT_S)
    stays_quiet(copy)
    for node in (ada, bob):
        assert answer(node) == before
        assert holders(node) == {"ada", "bob"}
        assert not [line for line in node.output_so_far() if "is gone" in line]


def test_copy_without_key_is_another_node(home: Home) -> None:
    ada, bob = home.pair()
    shutil.copytree(bob.data_dir, home.folder / "copy", ignore=shutil.ignore_patterns("run", "lock", "logs", KEY_FILE))
    copy = home.node("bob", None, "--peer", ada.join_endpoint, folder="copy")
    assert copy.config.node_id != bob.config.node_id
    ada.line_with("bob joined with a new key", REPORT_TIMEOUT_S)
    assert copy.config.node_id in {known["node_id"] for known in ada.get("/v1/topology")["nodes"]}


def test_rotated_code_replaces_the_old_one(home: Home) -> None:
    ada, bob = home.pair()
    assert "bob" in done(ada, "cluster", "rotate")
    bob.line_with("the join code of cluster home was changed", REPORT_TIMEOUT_S)
    fresh = kept_code(ada.data_dir)
    assert fresh is not None
    assert fresh != CODE
    assert kept_code(bob.data_dir) == fresh
    late = home.node("late", CODE)
    for node in (ada, bob):
        assert refusal_of(late, node.join_endpoint).code == "wrong_code"
    late.stop()
    joined_late = home.node("late", fresh, "--peer", bob.join_endpoint)
    wait_for_nodes(joined_late, {"ada", "bob", "late"})
    assert not [line for line in (*ada.output_so_far(), *bob.output_so_far()) if "is gone" in line]


def test_observer_reads_but_may_not_act(home: Home) -> None:
    ada = home.node("ada", CODE)
    eve = home.node("eve", CODE.invite(Role.OBSERVER), "--peer", ada.join_endpoint)
    ada.line_with("node eve joined as observer")
    wait_for_nodes(eve, {"ada"})
    wait_for_nodes(ada, {"ada"})
    assert "ada" in done(eve, "topology", "--api", eve.api)
    assert "node.record" in done(eve, "bus", "sub", "node.record", "--count", "1")
    wait_for_record(eve, ada)
    refused = chat(eve)
    assert refused.status_code >= 400
    assert "this node only observes" in refused.json()["error"]["message"]
    assert forbidden(eve, ada, InstanceEnsure(MODEL), InstanceReady) == "forbidden"
    assert forbidden(eve, ada, ShardLoad("i", 1, Shard(MODEL, 0, 4, 4), RecordNumber(1, 1)), ShardLoaded) == "forbidden"
    assert holders(ada) == set()


def wait_for_record(node: NodeProcess, other: NodeProcess) -> None:
    """Wait until another node's record arrives on a node's bus."""

    async def look(bus: BusClient) -> None:
        while (await next_message(bus, NodeRecorded))[1].node != other.config.node_id:
            pass

    on_bus(node, look, NodeRecorded)


def forbidden(node: NodeProcess, other: NodeProcess, work: Any, expects: type[Message]) -> str:
    """Send work that the sender's role may not send, and return the code of the refusal."""

    async def look(bus: BusClient) -> str:
        with pytest.raises(RequestError) as refused:
            await bus.request(f"{other.config.node_id}/node", work, expects, REPORT_TIMEOUT_S)
        return refused.value.code

    return on_bus(node, look)


def test_gateway_chats_without_layers(home: Home) -> None:
    ada = home.node("ada", CODE)
    gus = home.node("gus", CODE.invite(Role.GATEWAY), "--peer", ada.join_endpoint)
    ada.line_with("node gus joined as gateway")
    wait_for_nodes(gus, {"ada"})
    assert answer(gus) == answer(ada)
    assert holders(gus) == {"ada"}
    assert forbidden(ada, gus, ShardLoad("i", 1, Shard(MODEL, 0, 4, 4), RecordNumber(1, 1)), ShardLoaded) == "forbidden"


def test_standalone_node_listens_on_its_api_only(home: Home) -> None:
    beacons = free_udp_port()
    alone = home.node("alone", None, "--discovery-port", str(beacons))
    member = home.node("member", CODE, "--discovery-port", str(beacons))
    for node in (alone, member):
        answer(node)
    assert listening(alone) == ({api_port(alone)}, set())
    config = member.config
    tcp, udp = listening(member)
    assert {api_port(member), config.bus_port, config.join_port} < tcp, "the data plane has a port too"
    assert beacons in udp
    alone.line_with("this node stands alone")
