"""Links between hubs: in any order of events, each side ends with one link and publishes it once.

Two or more state machines are joined by a simulated network; hypothesis chooses which event comes next.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.messages import LinkHello, PeerDown, PeerUp
from bus.peering.link_state import Action, Close, Dial, LinkState, Publish, SendHello
from cluster.roles import Role

ADDRESSES = {node: f"tcp://{node}:1" for node in "abc"}
OWNERS = {endpoint: node for node, endpoint in ADDRESSES.items()}


@dataclass
class Network:
    """Carries out the actions of its hubs. A connection delivers in order; connections race each other."""

    hubs: dict[str, LinkState]
    lives: Counter[str] = field(default_factory=Counter)
    connecting: list[tuple[str, str]] = field(default_factory=list)  # (node, endpoint)
    wires: dict[tuple[str, str], list[LinkHello]] = field(default_factory=dict)
    published: dict[str, list[PeerUp | PeerDown]] = field(default_factory=dict)

    def act(self, node: str, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Dial(endpoint):
                    assert (node, endpoint) not in self.connecting, "dialled twice"
                    self.connecting.append((node, endpoint))
                case Close(endpoint):
                    self.connecting = [dial for dial in self.connecting if dial != (node, endpoint)]
                case SendHello(endpoint, received):
                    self.wires.setdefault((node, endpoint), []).append(self.hello(node, received))
                case Publish(fact):
                    self.published.setdefault(node, []).append(fact)

    def hello(self, node: str, received: bool) -> LinkHello:
        return LinkHello(node, node.upper(), self.lives[node], ADDRESSES[node], hello_received=received)

    def dial(self, node: str, endpoint: str) -> None:
        self.act(node, self.hubs[node].dial(endpoint))

    def step(self, data: st.DataObject) -> bool:
        """Have one event happen. Returns False if there is none."""
        wires = [wire for wire, hellos in self.wires.items() if hellos]
        choices = [*(("connect", dial) for dial in self.connecting), *(("deliver", wire) for wire in wires)]
        if not choices:
            return False
        what, (node, endpoint) = data.draw(st.sampled_from(choices))
        if what == "connect":
            self.connecting.remove((node, endpoint))
            self.act(node, self.hubs[node].connected(endpoint))
        else:
            hello = self.wires[node, endpoint].pop(0)
            self.act(OWNERS[endpoint], self.hubs[OWNERS[endpoint]].hello(hello, Role.MEMBER))
        return True

    def settle(self, data: st.DataObject) -> None:
        for _ in range(200):
            if not self.step(data):
                return
        raise AssertionError("hellos never end")

    def restart(self, node: str) -> None:
        """Kill a node and start it under the same address; its last hellos may still be under way."""
        self.lives[node] += 1
        self.hubs[node] = LinkState()
        self.published.pop(node, None)
        self.connecting = [dial for dial in self.connecting if dial[0] != node]

    def break_links_to(self, lost: str, node: str) -> None:
        """Have a node notice that its connection to a lost one broke; the hellos on it are lost."""
        self.wires.pop((node, ADDRESSES[lost]), None)
        self.act(node, self.hubs[node].disconnected(ADDRESSES[lost], "the connection broke"))


def network(*nodes: str) -> Network:
    return Network({node: LinkState() for node in nodes})


def linked(net: Network, node: str) -> list[str]:
    return sorted(peer.node_id for peer in net.hubs[node].peers())


dial_lists = st.lists(st.sampled_from("ab"), min_size=1, max_size=4)  # the nodes that dial


@settings(max_examples=800, deadline=None)
@given(st.data(), dial_lists)
def test_any_order_of_events_gives_one_link(data: st.DataObject, dials: list[str]) -> None:
    net = network("a", "b")
    for node in dials:
        net.dial(node, ADDRESSES["b" if node == "a" else "a"])
        if data.draw(st.booleans()):
            net.step(data)
    net.settle(data)
    assert (linked(net, "a"), linked(net, "b")) == (["b"], ["a"])
    for node, other in (("a", "b"), ("b", "a")):
        assert [(type(fact), fact.node_id) for fact in net.published[node]] == [(PeerUp, other)]
        assert net.hubs[node].endpoint_of(other) == ADDRESSES[other]


@settings(max_examples=500, deadline=None)
@given(st.data(), st.booleans(), st.booleans())
def test_restart_takes_a_link_down_and_up(data: st.DataObject, notices: bool, redials: bool) -> None:
    net = network("a", "b")
    net.dial("a", ADDRESSES["b"])
    net.settle(data)
    net.restart("b")
    if notices:
        net.break_links_to("b", "a")
    if redials or not notices:
        net.dial("b", ADDRESSES["a"])
    net.settle(data)
    assert (linked(net, "a"), linked(net, "b")) == (["b"], ["a"])
    assert [type(fact) for fact in net.published["a"]] == [PeerUp, PeerDown, PeerUp]
    assert [type(fact) for fact in net.published["b"]] == [PeerUp]


@settings(max_examples=500, deadline=None)
@given(st.data(), dial_lists, st.integers(0, 12))
def test_restart_amid_hellos_gives_one_link(data: st.DataObject, dials: list[str], steps: int) -> None:
    net = network("a", "b")
    for node in dials:
        net.dial(node, ADDRESSES["b" if node == "a" else "a"])
    for _ in range(steps):
        net.step(data)
    net.restart("b")
    net.break_links_to("b", "a")
    net.dial("b", ADDRESSES["a"])
    net.settle(data)
    assert (linked(net, "a"), linked(net, "b")) == (["b"], ["a"])
    facts = [type(fact) for fact in net.published["a"]]
    assert facts == [PeerUp, PeerDown] * (len(facts) // 2) + [PeerUp]


@settings(max_examples=300, deadline=None)
@given(st.data(), st.booleans())
def test_link_broken_on_one_side_heals(data: st.DataObject, at_the_dialler: bool) -> None:
    net = network("a", "b")
    net.dial("a", ADDRESSES["b"])
    net.settle(data)
    sufferer, other = ("a", "b") if at_the_dialler else ("b", "a")
    net.act(sufferer, net.hubs[sufferer].disconnected(ADDRESSES[other], "the connection broke"))
    net.settle(data)
    assert (linked(net, "a"), linked(net, "b")) == (["b"], ["a"])
    assert [type(fact) for fact in net.published[sufferer]] == [PeerUp, PeerDown, PeerUp]
    assert [type(fact) for fact in net.published[other]] == [PeerUp]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_three_hubs_are_fully_linked(data: st.DataObject) -> None:
    net = network("a", "b", "c")
    for node, other in (("a", "b"), ("b", "c"), ("c", "a")):
        net.dial(node, ADDRESSES[other])
    net.settle(data)
    assert [linked(net, node) for node in "abc"] == [["b", "c"], ["a", "c"], ["a", "b"]]


def hello(**changes: object) -> LinkHello:
    return msgspec.structs.replace(LinkHello("b", "B", 1, "tcp://b:1"), **changes)


def linked_state() -> LinkState:
    state = LinkState()
    state.dial("tcp://b:1")
    state.connected("tcp://b:1")
    state.hello(hello(), Role.MEMBER)
    return state


def test_unanswered_dial_sends_hello_again() -> None:
    state = LinkState()
    assert state.dial("tcp://b:1") == [Dial("tcp://b:1")]
    assert state.dial("tcp://b:1") == []
    state.connected("tcp://b:1")
    assert state.dial("tcp://b:1") == [SendHello("tcp://b:1")]
    state.hello(hello(hello_received=True), Role.MEMBER)
    assert state.dial("tcp://b:1") == []


def test_bye_ends_link_without_redial() -> None:
    assert linked_state().left("b") == [Close("tcp://b:1"), Publish(PeerDown("b", "it left"))]


def test_failed_first_dial_publishes_nothing() -> None:
    state = LinkState()
    state.dial("tcp://b:1")
    assert state.disconnected("tcp://b:1", "refused") == [Close("tcp://b:1")]
    assert state.disconnected("tcp://b:1", "refused") == []


def test_lost_link_is_dialed_once_more() -> None:
    state = linked_state()
    down = Publish(PeerDown("b", "broke"))
    assert state.disconnected("tcp://b:1", "broke") == [Close("tcp://b:1"), down, Dial("tcp://b:1")]
    assert state.disconnected("tcp://b:1", "refused") == [Close("tcp://b:1")]
    assert state.endpoint_of("b") is None


def test_hello_from_before_restart_is_ignored() -> None:
    state = linked_state()
    state.hello(hello(incarnation=2), Role.MEMBER)
    state.connected("tcp://b:1")
    assert state.hello(hello(incarnation=1), Role.MEMBER) == []
    assert state.endpoint_of("b") == "tcp://b:1"
