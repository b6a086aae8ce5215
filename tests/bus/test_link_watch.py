"""`bus.link_watch`: whatever facts are lost, the actor's events alternate and end at what the hub is linked to."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from pathlib import Path

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from bus.actor import Actor, on
from bus.client import BusClient
from bus.link_watch import LinkEvent, LinkWatch
from bus.messages import HubPeer, PeerDown, PeerUp
from bus.net.endpoints import port_of
from cluster.roles import Role
from tests.support.bus import (
    WITHIN_S,
    RunningHub,
    client,
    hub_config,
    hub_process,
    link,
    new_node,
    run_folder,
    running_hub,
)

NEAR, FAR = new_node(), new_node()
NODES = st.sampled_from("abc")


def up(node: str) -> PeerUp:
    return PeerUp(node, node.upper(), f"tcp://{node}:1")


def peers(*nodes: str) -> list[HubPeer]:
    return [HubPeer(node, node.upper(), f"tcp://{node}:1") for node in nodes]


def short(events: Sequence[LinkEvent]) -> list[str]:
    return [f"{'+' if isinstance(event, PeerUp) else '-'}{event.node_id}" for event in events]


def test_repeated_facts_are_told_once() -> None:
    watch = LinkWatch()
    facts: list[LinkEvent] = [up("a"), up("a"), PeerDown("b", ""), PeerDown("a", ""), PeerDown("a", "")]
    assert short([event for fact in facts for event in watch.heard(fact)]) == ["+a", "-a"]


def test_list_makes_up_for_lost_facts() -> None:
    watch = LinkWatch()
    watch.heard(up("a"))
    watch.asked()
    assert short(watch.compare(peers("b", "c"))) == ["-a", "+b", "+c"]


def test_facts_since_the_question_count_more_than_the_list() -> None:
    watch = LinkWatch()
    watch.heard(up("a"))
    watch.asked()
    watch.heard(PeerDown("a", ""))
    watch.heard(up("b"))
    assert watch.compare(peers("a")) == []


def test_lost_hub_ends_all_links() -> None:
    watch = LinkWatch()
    watch.compare(peers("a", "b"))
    assert short(watch.hub_lost()) == ["-a", "-b"]
    assert watch.hub_lost() == []
    assert short(watch.compare(peers("b"))) == ["+b"]


def test_changed_peer_goes_down_and_up() -> None:
    watch = LinkWatch()
    watch.heard(up("a"))
    watch.asked()
    changed = HubPeer("a", "A", "tcp://a:1", Role.OBSERVER)
    assert short(watch.compare([changed])) == ["-a", "+a"]


class Watching(RuleBasedStateMachine):
    """A hub with facts that are late or lost, and a list that may be older than they are; it ends and starts again."""

    def __init__(self) -> None:
        super().__init__()
        self.watch = LinkWatch()
        self.linked: set[str] = set()  # at the hub
        self.facts: list[LinkEvent] = []  # under way
        self.told: set[str] = set()
        self.asking = False
        self.listed: list[HubPeer] | None = None

    def tell(self, events: Sequence[LinkEvent]) -> None:
        for event in events:
            if isinstance(event, PeerUp):
                assert event.node_id not in self.told, "told twice"
                self.told.add(event.node_id)
            else:
                self.told.remove(event.node_id)

    @rule(node=NODES)
    def link_changes(self, node: str) -> None:
        self.facts.append(PeerDown(node, "") if node in self.linked else up(node))
        self.linked ^= {node}

    @precondition(lambda self: self.facts)
    @rule(lost=st.booleans())
    def fact_arrives(self, lost: bool) -> None:
        fact = self.facts.pop(0)
        if not lost:
            self.tell(self.watch.heard(fact))

    @precondition(lambda self: not self.asking)
    @rule()
    def client_asks(self) -> None:
        self.watch.asked()
        self.asking = True

    @precondition(lambda self: self.asking)
    @rule()
    def hub_replies(self) -> None:
        self.listed = peers(*sorted(self.linked))

    @precondition(lambda self: self.listed is not None)
    @rule()
    def reply_arrives(self) -> None:
        assert self.listed is not None
        self.tell(self.watch.compare(self.listed))
        self.asking, self.listed = False, None

    @rule()
    def hub_starts_again(self) -> None:
        self.linked.clear()
        self.facts.clear()
        self.asking, self.listed = False, None
        self.tell(self.watch.hub_lost())

    @rule()
    def is_quiet(self) -> None:
        while self.facts:
            self.fact_arrives(lost=False)
        self.watch.asked()
        self.tell(self.watch.compare(peers(*sorted(self.linked))))
        self.asking, self.listed = False, None
        assert self.told == self.linked

    @invariant()
    def knows_what_it_told(self) -> None:
        assert set(self.watch._linked) == self.told


Watching.TestCase.settings = settings(max_examples=200, stateful_step_count=40)
TestWatching = Watching.TestCase


# -- in an actor


class Follower(Actor):
    """Notes the links that it is told of."""

    name = "follower"

    def __init__(self, bus: BusClient) -> None:
        super().__init__(bus)
        self.told: asyncio.Queue[PeerUp | PeerDown] = asyncio.Queue()

    @on(PeerUp, PeerDown)
    async def note(self, message: PeerUp | PeerDown, envelope: object) -> None:
        self.told.put_nowait(message)

    async def next(self, kind: type[PeerUp | PeerDown]) -> PeerUp | PeerDown:
        """Return what it was told next, which has to be of this class."""
        event = await asyncio.wait_for(self.told.get(), WITHIN_S)
        assert isinstance(event, kind), event
        return event


def test_actor_is_told_that_its_hub_lost_the_links() -> None:
    async def test(far: RunningHub, folder: Path) -> None:
        config = hub_config(folder, NEAR, "near")
        with hub_process(config) as first:
            async with client(folder, NEAR, "asker") as asker:
                state = await link(asker, far.join_endpoint)
                follower = Follower(BusClient(folder, NEAR, Follower.name))
                running = asyncio.create_task(follower.run())
                assert (await follower.next(PeerUp)).node_id == FAR, "linked before the actor started"
                first.signal(signal.SIGKILL)
                first.process.wait(WITHIN_S)
                with hub_process(msgspec.structs.replace(config, bus_port=port_of(state.endpoint))):
                    assert await follower.next(PeerDown) == PeerDown(
                        FAR, "the hub of this node was started again", f"name of {FAR}"
                    )
                    await link(asker, far.join_endpoint)
                    assert (await follower.next(PeerUp)).node_id == FAR
                    follower.stop()
                    await asyncio.wait_for(running, WITHIN_S)
                assert follower.told.empty()

    with running_hub(FAR) as far, run_folder() as folder:
        asyncio.run(test(far, folder))
