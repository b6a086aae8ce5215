"""A hub's side towards other nodes: the bus port, the gate, and the knocking at others' gates.

Who is let in is the doorkeeper's to say, and what members' messages mean is the hub's. A node that stands alone has
none of this.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress

import msgspec
import zmq

from bus.config import DEFAULT_BUS_PORT, DEFAULT_GATE_PORT, NodeConfig, ports_to_try
from bus.doorkeeper import BUS, GATE, Doorkeeper, duplicate
from bus.endpoints import address_of
from bus.keys import node_id_of
from bus.knocks import GATE_BYTES, Knocks
from bus.links import Links
from bus.messages import GateKnock, GateWelcome, Message, PeerMet, PeerRefused, RequestFailed
from bus.port import Port
from bus.rate_limited import RateLimit
from bus.sequences import Numbering
from bus.sockets import Guard
from bus.wire import Envelope, WireError, decode, encode
from bus.zap import ZapHandler
from cluster.bounds import MOST_GATES
from cluster.members import Member, Members, NotLetIn
from cluster.roles import Role

logger = logging.getLogger(__name__)

KNOCKS_A_SECOND = 10
SAY_AGAIN_S = 60.0  # the same sentence about who stays outside
MOST_SAID = 10  # sentences in that time
MOST_GATES_KNOWN = 1024

Announce = Callable[[PeerMet | PeerRefused], None]


class Outside:
    """Used on the hub's thread only."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        poller: zmq.Poller,
        config: NodeConfig,
        door: Doorkeeper,
        counters: Counter[str],
        announce: Announce,
        links: Links,
        numbers: Numbering,
    ) -> None:
        """Listen. Raises OSError with a sentence."""
        self._door, self._counters, self._announce = door, counters, announce
        self._links, self._node_id, self._numbers = links, config.node_id, numbers
        self._zap = ZapHandler(context, door.allow)
        self._knocks = Knocks(context, poller, door, numbers, self._let_in, self._refused)
        self._recent: list[float] = []
        self._said = RateLimit(SAY_AGAIN_S, MOST_SAID)
        self.gates: dict[str, str] = {}  # gate as it was dialled -> the bus end point behind it
        try:
            ports = ports_to_try(config.bus_port, DEFAULT_BUS_PORT)
            self.bus = Port(context, config.host, ports, Guard(door.pair, BUS), counters)
            self.gate = self._open_gate(context, config) if door.role is Role.MEMBER else None
        except OSError:
            self._zap.close()
            raise
        for port in (self.bus, self.gate):
            if port:
                poller.register(port.socket, zmq.POLLIN)
                poller.register(port.monitor, zmq.POLLIN)

    def _open_gate(self, context: zmq.Context[zmq.Socket[bytes]], config: NodeConfig) -> Port:
        ports = ports_to_try(config.gate_port, DEFAULT_GATE_PORT)
        guard = Guard(self._door.gate, GATE)
        return Port(context, config.host, ports, guard, self._counters, GATE_BYTES)

    @property
    def gate_address(self) -> str:
        """Where others knock, without its key; empty for a node whose role has no gate."""
        return address_of(self.gate.endpoint) if self.gate else ""

    def knock(self, endpoint: str) -> None:
        """Knock at a gate. Raises ValueError for what is no end point."""
        self._knocks.knock(endpoint)

    def serve(self, socket: zmq.Socket[bytes]) -> bool:
        """Something came on a socket that is not the bus's; false where it is none of ours. Raises WireError."""
        if self._knocks.serve(socket, self.bus.endpoint):
            return True
        if self.gate and socket is self.gate.socket:
            self._knocked(self.gate)
        elif self.gate and socket is self.gate.monitor:
            if self.gate.from_monitor():
                name = self._door.code.name
                self._tell("", "wrong_code", f"somebody knocked with a wrong join code for cluster {name}")
        elif socket is self.bus.monitor:
            self.bus.from_monitor()
        else:
            return False
        return True

    def tend(self, now: float) -> None:
        """What is due: knocks that nobody answered, ports to listen on again."""
        self._knocks.expire(now)
        self.bus.tend(now)
        if self.gate:
            self.gate.tend(now)

    def rotated(self) -> None:
        """The join code is another one: the gate's key too."""
        if self.gate:
            self.gate.listen_as(Guard(self._door.gate, GATE))

    def close(self) -> None:
        """Close everything."""
        self._knocks.close()
        for port in (self.bus, self.gate):
            if port:
                port.close()
        self._zap.close()

    # -- at our gate

    def _knocked(self, gate: Port) -> None:
        key, source, frames = gate.receive()
        envelope = decode(frames)
        if not isinstance(envelope.message, GateKnock):
            raise WireError("at the gate")
        gate.answer(source, self._reply(envelope, self._judge(bytes.fromhex(key), envelope.message)))

    def _judge(self, key: bytes, knock: GateKnock) -> GateWelcome | RequestFailed:
        try:
            self._check_rate()
            self._check_life(key, knock)
            before = self._door.members
            welcome = self._door.knocked(key, knock, self.bus.endpoint)
            self._met("", self._door.members.check(node_id_of(key)), before)
            gates = tuple(peer.gate for peer in self._links.standing() if peer.gate)[:MOST_GATES]
            return msgspec.structs.replace(welcome, gates=gates)
        except NotLetIn as error:
            if error.code not in ("self", "busy"):
                self._tell("", error.code, f"{knock.name} was not let in: {error}")
            return RequestFailed(error.code, str(error))

    def _check_rate(self) -> None:
        now = time.monotonic()
        self._recent = [at for at in self._recent if now - at < 1]
        if len(self._recent) >= KNOCKS_A_SECOND:
            raise NotLetIn("busy", "too many nodes knock at this gate; try again soon")
        self._recent.append(now)

    def _check_life(self, key: bytes, knock: GateKnock) -> None:
        """A key whose node is linked already, and alive, belongs to no second node."""
        life = self._links.life_of(node_id_of(key))
        if life not in (None, knock.incarnation):
            raise NotLetIn("duplicate", duplicate(knock.name))

    def _reply(self, envelope: Envelope, reply: Message) -> list[bytes]:
        to = envelope.header.sender
        return encode(to, self._numbers.header(reply, to, envelope.header.id), reply)

    # -- at others' gates

    def _let_in(self, endpoint: str, welcome: GateWelcome) -> None:
        before = self._door.members
        try:
            member = self._door.welcomed(welcome)
        except NotLetIn as error:
            self._refused(endpoint, error.code, str(error))
            return
        self.gates[endpoint] = welcome.endpoint
        while len(self.gates) > MOST_GATES_KNOWN:
            del self.gates[next(iter(self.gates))]
        self._met(endpoint, member, before)
        self._links.dial(welcome.endpoint)
        self._meet_others(welcome.gates)

    def _met(self, endpoint: str, member: Member, before: Members) -> None:
        if news := self._door.news(member, before):
            logger.warning("%s", news)
        self._announce(PeerMet(endpoint, member.node_id, member.name, news))

    def _meet_others(self, gates: Sequence[str]) -> None:
        """Every member is linked to every other, also where no beacon gets through."""
        known = {*self.gates, *(peer.gate for peer in self._links.standing()), self.gate_address}
        for gate in [gate for gate in gates if gate not in known]:
            with suppress(ValueError):
                self._knocks.knock(gate)

    def _refused(self, endpoint: str, code: str, sentence: str) -> None:
        if code == "self":
            self._announce(PeerMet(endpoint, self._node_id, ""))
        else:
            self._announce(PeerRefused(endpoint, code, sentence))

    def _tell(self, endpoint: str, code: str, sentence: str) -> None:
        """To our own node and the log, each sentence once a minute: outsiders can make us say it."""
        if self._said.pass_on(sentence, time.monotonic()) is not None:
            logger.warning("%s", sentence)
            self._announce(PeerRefused(endpoint, code, sentence))
