"""Link states of several hubs, joined by a simulated network that loses and delays what they send."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count

import msgspec
from hypothesis import strategies as st

from bus.messages import LinkHello, PeerDown, PeerUp
from bus.peering.link_state import Action, Close, Dial, Forget, LinkState, Publish, SendHello, Subscribe
from cluster.roles import Role

ADDRESSES = {node: f"tcp://{node}:1" for node in "abc"}
OWNERS = {endpoint: node for node, endpoint in ADDRESSES.items()}
Dialled = tuple[str, str]
"""(node, endpoint)"""


@dataclass
class Network:
    """Carries out the actions of its hubs. A connection delivers in order; connections race each other.

    What was sent on a connection may also arrive after its end.
    """

    hubs: dict[str, LinkState]
    lives: Counter[str] = field(default_factory=Counter)
    connecting: list[Dialled] = field(default_factory=list)
    connections: dict[Dialled, int] = field(default_factory=dict)  # their numbers, from the dial to the end
    broken: set[Dialled] = field(default_factory=set)  # not noticed yet
    wires: dict[tuple[str, str, int], list[LinkHello]] = field(default_factory=dict)
    published: dict[str, list[PeerUp | PeerDown]] = field(default_factory=dict)
    topics: dict[str, dict[str, tuple[str, ...]]] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=lambda: count(1))

    def act(self, node: str, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Dial(endpoint):
                    assert (node, endpoint) not in self.connections, "dialled twice"
                    self.connecting.append((node, endpoint))
                    self.connections[node, endpoint] = next(self.numbers)
                case Close(endpoint):
                    self.forget(node, endpoint)
                case SendHello(endpoint, received):
                    self.send(node, endpoint, received)
                case Publish(fact):
                    self.published.setdefault(node, []).append(fact)
                case Subscribe(other, topics):
                    self.topics.setdefault(node, {})[other] = topics
                case Forget(other):
                    self.topics.setdefault(node, {}).pop(other, None)

    def forget(self, node: str, endpoint: str) -> None:
        self.connecting = [dial for dial in self.connecting if dial != (node, endpoint)]
        self.broken.discard((node, endpoint))
        self.connections.pop((node, endpoint), None)

    def send(self, node: str, endpoint: str, received: bool) -> None:
        if (node, endpoint) not in self.broken:
            number = self.connections[node, endpoint]
            hello = LinkHello(node, node.upper(), self.lives[node], ADDRESSES[node], (f"topic of {node}",))
            hello = msgspec.structs.replace(hello, hello_received=received, connection=number)
            self.wires.setdefault((node, endpoint, number), []).append(hello)

    def dial(self, node: str, endpoint: str) -> None:
        self.act(node, self.hubs[node].dial(endpoint))

    def connect(self, node: str, endpoint: str) -> None:
        self.connecting.remove((node, endpoint))
        self.act(node, self.hubs[node].connected(endpoint))

    def deliver(self, wire: tuple[str, str, int]) -> None:
        hello, to = self.wires[wire].pop(0), OWNERS[wire[1]]
        self.act(to, self.hubs[to].hello(hello, Role.MEMBER))

    def step(self, data: st.DataObject) -> bool:
        """Have one event happen. Returns False if there is none."""
        wires = [wire for wire, hellos in self.wires.items() if hellos]
        if not wires and not self.connecting:
            return False
        number = data.draw(st.integers(0, len(self.connecting) + len(wires) - 1))
        if number < len(self.connecting):
            self.connect(*self.connecting[number])
        else:
            self.deliver(wires[number - len(self.connecting)])
        return True

    def lose(self, node: str, endpoint: str, kept: int = 0) -> None:
        """Break an established connection; only the first `kept` of the hellos on it still arrive."""
        if (node, endpoint) in self.connections and (node, endpoint) not in self.connecting:
            self.broken.add((node, endpoint))
            del self.wires.get((node, endpoint, self.connections[node, endpoint]), [])[kept:]

    def settle(self, data: st.DataObject) -> None:
        for _ in range(200):
            if not self.step(data):
                return
        raise AssertionError("hellos never end")

    def restart(self, node: str, *, lives: int = 1) -> None:
        """Kill a node and start it under the same address; its last hellos may still be under way."""
        self.lives[node] += lives
        self.hubs[node] = LinkState()
        self.published.pop(node, None)
        for endpoint in ADDRESSES.values():
            self.forget(node, endpoint)

    def break_links_to(self, lost: str, node: str) -> None:
        """Have a node notice that its connection to a lost one broke; the hellos on it are lost."""
        number = self.connections.get((node, ADDRESSES[lost]))
        self.wires = {wire: hellos for wire, hellos in self.wires.items() if wire[2] != number}
        self.act(node, self.hubs[node].disconnected(ADDRESSES[lost], "the connection broke"))


def network(*nodes: str) -> Network:
    return Network({node: LinkState() for node in nodes})


def linked(net: Network, node: str) -> list[str]:
    return sorted(peer.node_id for peer in net.hubs[node].peers())
