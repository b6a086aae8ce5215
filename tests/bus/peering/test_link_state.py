"""Links between hubs: in any order of events, each side ends with one link and publishes it once.

Two or more state machines are joined by a simulated network; hypothesis chooses which event comes next.
"""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from bus.messages import LinkHello, PeerDown, PeerUp
from bus.peering.link_state import Close, Dial, Forget, LinkState, Publish, SendHello, Subscribe
from cluster.roles import Role
from tests.support.network.link_network import ADDRESSES, linked, network

dial_lists = st.lists(st.sampled_from("ab"), min_size=1, max_size=4)  # the nodes that dial


@settings(max_examples=800)
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


@settings(max_examples=500)
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


@settings(max_examples=500)
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


@settings(max_examples=300)
@given(st.data(), st.booleans())
def test_link_broken_on_one_side_breaks_on_both(data: st.DataObject, at_the_dialler: bool) -> None:
    net = network("a", "b")
    net.dial("a", ADDRESSES["b"])
    net.settle(data)
    sufferer, other = ("a", "b") if at_the_dialler else ("b", "a")
    net.act(sufferer, net.hubs[sufferer].disconnected(ADDRESSES[other], "the connection broke"))
    net.settle(data)
    assert (linked(net, "a"), linked(net, "b")) == (["b"], ["a"])
    for node in (sufferer, other):
        assert [type(fact) for fact in net.published[node]] == [PeerUp, PeerDown, PeerUp]


class BreakingLinks(RuleBasedStateMachine):
    """Two hubs with connections that break, are noticed late and lose what was on them; hubs also start again.

    Whenever it is quiet again, both are linked, each has the other's topics, and either both or none saw the link down.
    """

    @initialize()
    def begin(self) -> None:
        self.net = network("a", "b")
        self.quiet_again()
        self.downs = {"a": False, "b": False}

    @rule(dial=st.sampled_from([("a", "b"), ("b", "a")]), kept=st.integers(0, 2))
    def breaks(self, dial: tuple[str, str], kept: int) -> None:
        self.net.lose(dial[0], ADDRESSES[dial[1]], kept)

    @rule(data=st.data())
    def is_noticed(self, data: st.DataObject) -> None:
        if self.net.broken:
            self.notice(*data.draw(st.sampled_from(sorted(self.net.broken))))

    @rule(data=st.data())
    def is_refused(self, data: st.DataObject) -> None:
        if self.net.connecting:
            self.notice(*data.draw(st.sampled_from(self.net.connecting)))

    @rule(data=st.data())
    def goes_on(self, data: st.DataObject) -> None:
        self.net.step(data)

    @rule(node=st.sampled_from("ab"))
    def discovery_dials(self, node: str) -> None:
        self.discover(node)

    @rule(node=st.sampled_from("ab"))
    def hub_starts_again(self, node: str) -> None:
        other = "b" if node == "a" else "a"
        self.downs[node] = True  # `bus.link_watch` tells its actors
        self.downs[other] |= self.saw_down(other)
        self.net.restart(node, lives=0)
        self.net.lose(other, ADDRESSES[node])
        self.net.wires = {wire: hellos for wire, hellos in self.net.wires.items() if wire[0] == node}

    @rule()
    def is_quiet(self) -> None:
        self.quiet_again()
        downs = {node: self.downs[node] or self.saw_down(node) for node in "ab"}
        assert downs["a"] == downs["b"]
        self.downs = {"a": False, "b": False}
        self.net.published.clear()

    def saw_down(self, node: str) -> bool:
        return any(isinstance(fact, PeerDown) for fact in self.net.published.get(node, []))

    def notice(self, node: str, endpoint: str) -> None:
        self.net.act(node, self.net.hubs[node].disconnected(endpoint, "the connection broke"))

    def discover(self, node: str) -> None:
        other = "b" if node == "a" else "a"
        if not linked(self.net, node):
            self.net.dial(node, ADDRESSES[other])

    def quiet_again(self) -> None:
        """Let all that is under way happen, without further losses."""
        for _ in range(100):
            if not self.go_on():
                break
        self.agree()

    def go_on(self) -> bool:
        """Let what is under way happen, or discovery dial. Returns False if there is nothing to do."""
        net = self.net
        lost, dials = sorted(net.broken), list(net.connecting)
        for dial in lost:
            self.notice(*dial)
        for dial in dials:
            net.connect(*dial)
        for wire in (wires := [wire for wire, hellos in net.wires.items() if hellos]):
            net.deliver(wire)
        if lost or dials or wires:
            return True
        for node in (apart := [node for node in "ab" if not linked(net, node)]):
            self.discover(node)
        return bool(apart)

    def agree(self) -> None:
        net = self.net
        assert (linked(net, "a"), linked(net, "b")) == (["b"], ["a"])
        for node, other in (("a", "b"), ("b", "a")):
            assert net.topics[node] == {other: (f"topic of {other}",)}
            heard = net.hubs[node]._links[ADDRESSES[other]].hello
            assert heard is not None
            assert heard.connection == net.connections[other, ADDRESSES[node]], "it was sent on an ended connection"


BreakingLinks.TestCase.settings = settings(max_examples=150, stateful_step_count=30)
TestBreakingLinks = BreakingLinks.TestCase


@settings(max_examples=200)
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
    assert linked_state().left("b") == [Close("tcp://b:1"), Forget("b"), Publish(PeerDown("b", "it left", "B"))]


def test_failed_first_dial_publishes_nothing() -> None:
    state = LinkState()
    state.dial("tcp://b:1")
    assert state.disconnected("tcp://b:1", "refused") == [Close("tcp://b:1")]
    assert state.disconnected("tcp://b:1", "refused") == []


def test_lost_link_is_dialed_once_more() -> None:
    state = linked_state()
    down = Publish(PeerDown("b", "broke", "B"))
    assert state.disconnected("tcp://b:1", "broke") == [Close("tcp://b:1"), Forget("b"), down, Dial("tcp://b:1")]
    assert state.disconnected("tcp://b:1", "refused") == [Close("tcp://b:1")]
    assert state.endpoint_of("b") is None


def test_hello_from_before_restart_is_ignored() -> None:
    state = linked_state()
    state.hello(hello(incarnation=2), Role.MEMBER)
    state.connected("tcp://b:1")
    assert state.hello(hello(incarnation=1), Role.MEMBER) == []
    assert state.endpoint_of("b") == "tcp://b:1"


def test_hello_on_new_connection_renews_the_link() -> None:
    state = linked_state()
    renewed = hello(connection=5, subscriptions=("log",))
    assert state.hello(renewed, Role.MEMBER) == [
        Publish(PeerDown("b", "its connection broke", "B")),
        Subscribe("b", ("log",)),
        SendHello("tcp://b:1", received=True),
        Publish(PeerUp("b", "B", "tcp://b:1")),
    ]
    repeated = msgspec.structs.replace(renewed, hello_received=True)
    assert state.hello(repeated, Role.MEMBER) == [Subscribe("b", ("log",))]


def test_hello_from_ended_connection_is_ignored() -> None:
    state = linked_state()
    state.hello(hello(connection=5), Role.MEMBER)
    assert state.hello(hello(connection=4, subscriptions=("old",)), Role.MEMBER) == []
