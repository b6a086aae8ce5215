"""Links between hubs: whatever the order of dials and hellos, each side ends with one link and said so once.

Two or more meshes are joined by a simulated network; hypothesis chooses which event comes next.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.messages import LinkHello, PeerDown, PeerUp
from bus.peering.link_state import Action, Close, Dial, LinkState, Publish, SayHello
from cluster.roles import Role

ADDRESSES = {node: f"tcp://{node}:1" for node in "abc"}
OWNERS = {endpoint: node for node, endpoint in ADDRESSES.items()}


@dataclass
class Network:
    """Carries out the actions of its meshes. Every connection delivers in order; connections race each other."""

    meshes: dict[str, LinkState]
    lives: Counter[str] = field(default_factory=Counter)
    connecting: list[tuple[str, str]] = field(default_factory=list)  # (node, end point)
    wires: dict[tuple[str, str], list[LinkHello]] = field(default_factory=dict)
    said: dict[str, list[PeerUp | PeerDown]] = field(default_factory=dict)

    def act(self, node: str, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Dial(endpoint):
                    assert (node, endpoint) not in self.connecting, "dialled twice"
                    self.connecting.append((node, endpoint))
                case Close(endpoint):
                    self.connecting = [dial for dial in self.connecting if dial != (node, endpoint)]
                case SayHello(endpoint, heard):
                    self.wires.setdefault((node, endpoint), []).append(self.hello(node, heard))
                case Publish(fact):
                    self.said.setdefault(node, []).append(fact)

    def hello(self, node: str, heard: bool) -> LinkHello:
        return LinkHello(node, node.upper(), self.lives[node], ADDRESSES[node], heard=heard)

    def dial(self, node: str, endpoint: str) -> None:
        self.act(node, self.meshes[node].dial(endpoint))

    def step(self, data: st.DataObject) -> bool:
        """Let one thing happen; False where nothing is left."""
        wires = [wire for wire, hellos in self.wires.items() if hellos]
        choices = [*(("connect", dial) for dial in self.connecting), *(("deliver", wire) for wire in wires)]
        if not choices:
            return False
        what, (node, endpoint) = data.draw(st.sampled_from(choices))
        if what == "connect":
            self.connecting.remove((node, endpoint))
            self.act(node, self.meshes[node].connected(endpoint))
        else:
            hello = self.wires[node, endpoint].pop(0)
            self.act(OWNERS[endpoint], self.meshes[OWNERS[endpoint]].hello(hello, Role.MEMBER))
        return True

    def settle(self, data: st.DataObject) -> None:
        for _ in range(200):
            if not self.step(data):
                return
        raise AssertionError("hellos go back and forth for ever")

    def restart(self, node: str) -> None:
        """A node is killed and begins again under the same addresses; what it said may still be under way."""
        self.lives[node] += 1
        self.meshes[node] = LinkState(node)
        self.said.pop(node, None)
        self.connecting = [dial for dial in self.connecting if dial[0] != node]

    def break_links_to(self, lost: str, node: str) -> None:
        """Node notices that its connections to a lost one broke; the lost one's own wires are gone too."""
        self.wires.pop((node, ADDRESSES[lost]), None)
        self.act(node, self.meshes[node].disconnected(ADDRESSES[lost], "the connection broke"))


def network(*nodes: str) -> Network:
    return Network({node: LinkState(node) for node in nodes})


def linked(net: Network, node: str) -> list[str]:
    return sorted(peer.node_id for peer in net.meshes[node].standing())


dial_lists = st.lists(st.sampled_from("ab"), min_size=1, max_size=4)  # who dials the other


@settings(max_examples=800, deadline=None)
@given(st.data(), dial_lists)
def test_any_order_of_dials_and_hellos_ends_with_one_link_said_once(data: st.DataObject, dials: list[str]) -> None:
    net = network("a", "b")
    for node in dials:
        net.dial(node, ADDRESSES["b" if node == "a" else "a"])
        if data.draw(st.booleans()):
            net.step(data)
    net.settle(data)
    assert (linked(net, "a"), linked(net, "b")) == (["b"], ["a"])
    for node, other in (("a", "b"), ("b", "a")):
        assert [(type(fact), fact.node_id) for fact in net.said[node]] == [(PeerUp, other)]
        assert net.meshes[node].endpoint_of(other) == ADDRESSES[other]


@settings(max_examples=500, deadline=None)
@given(st.data(), st.booleans(), st.booleans())
def test_a_restart_is_a_down_and_then_an_up(data: st.DataObject, notices: bool, redials: bool) -> None:
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
    assert [type(fact) for fact in net.said["a"]] == [PeerUp, PeerDown, PeerUp]
    assert [type(fact) for fact in net.said["b"]] == [PeerUp]


@settings(max_examples=500, deadline=None)
@given(st.data(), dial_lists, st.integers(0, 12))
def test_a_restart_in_the_midst_of_hellos_still_ends_with_one_link(
    data: st.DataObject, dials: list[str], steps: int
) -> None:
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
    facts = [type(fact) for fact in net.said["a"]]
    assert facts == [PeerUp, PeerDown] * (len(facts) // 2) + [PeerUp]


@settings(max_examples=300, deadline=None)
@given(st.data(), st.booleans())
def test_a_link_that_broke_on_one_side_only_heals(data: st.DataObject, at_the_dialler: bool) -> None:
    net = network("a", "b")
    net.dial("a", ADDRESSES["b"])
    net.settle(data)
    sufferer, other = ("a", "b") if at_the_dialler else ("b", "a")
    net.act(sufferer, net.meshes[sufferer].disconnected(ADDRESSES[other], "the connection broke"))
    net.settle(data)
    assert (linked(net, "a"), linked(net, "b")) == (["b"], ["a"])
    assert [type(fact) for fact in net.said[sufferer]] == [PeerUp, PeerDown, PeerUp]
    assert [type(fact) for fact in net.said[other]] == [PeerUp]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_three_hubs_link_each_to_each(data: st.DataObject) -> None:
    net = network("a", "b", "c")
    for node, other in (("a", "b"), ("b", "c"), ("c", "a")):
        net.dial(node, ADDRESSES[other])
    net.settle(data)
    assert [linked(net, node) for node in "abc"] == [["b", "c"], ["a", "c"], ["a", "b"]]


def hello(**changes: object) -> LinkHello:
    return msgspec.structs.replace(LinkHello("b", "B", 1, "tcp://b:1"), **changes)


def standing() -> LinkState:
    mesh = LinkState("a")
    mesh.dial("tcp://b:1")
    mesh.connected("tcp://b:1")
    mesh.hello(hello(), Role.MEMBER)
    return mesh


def test_a_dial_under_way_is_left_alone_and_one_that_nobody_answered_says_hello_again() -> None:
    mesh = LinkState("a")
    assert mesh.dial("tcp://b:1") == [Dial("tcp://b:1")]
    assert mesh.dial("tcp://b:1") == []
    mesh.connected("tcp://b:1")
    assert mesh.dial("tcp://b:1") == [SayHello("tcp://b:1")]
    mesh.hello(hello(heard=True), Role.MEMBER)
    assert mesh.dial("tcp://b:1") == []


def test_a_goodbye_takes_the_link_down_and_nobody_dials() -> None:
    assert standing().left("b") == [Close("tcp://b:1"), Publish(PeerDown("b", "it left"))]


def test_a_dial_that_never_stood_ends_silently() -> None:
    mesh = LinkState("a")
    mesh.dial("tcp://b:1")
    assert mesh.disconnected("tcp://b:1", "refused") == [Close("tcp://b:1")]
    assert mesh.disconnected("tcp://b:1", "refused") == []


def test_a_link_that_stood_is_tried_once_more() -> None:
    mesh = standing()
    down = Publish(PeerDown("b", "broke"))
    assert mesh.disconnected("tcp://b:1", "broke") == [Close("tcp://b:1"), down, Dial("tcp://b:1")]
    assert mesh.disconnected("tcp://b:1", "refused") == [Close("tcp://b:1")]
    assert mesh.endpoint_of("b") is None


def test_a_late_hello_from_before_a_restart_is_ignored() -> None:
    mesh = standing()
    mesh.hello(hello(incarnation=2), Role.MEMBER)
    mesh.connected("tcp://b:1")
    assert mesh.hello(hello(incarnation=1), Role.MEMBER) == []
    assert mesh.endpoint_of("b") == "tcp://b:1"
