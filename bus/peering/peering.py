"""A hub's side towards other nodes: the bus port, the join port, and the knocking at others' join ports.

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

from bus.messages import JoinAccept, JoinRequest, Message, PeerAuthenticated, PeerRefused, RequestFailed
from bus.net.endpoints import address_of
from bus.net.keys import node_id_of
from bus.net.listener import Listener
from bus.net.sockets import CurveServer
from bus.net.zap import ZapHandler
from bus.peering.authenticator import BUS, JOIN, Authenticator, duplicate
from bus.peering.join_client import JOIN_BYTES, JoinClient
from bus.peering.links import Links
from bus.sequencing import Sequencer
from bus.wire import Envelope, WireError, decode, encode
from cluster.failures import FailureCode
from cluster.membership import JoinRefused, Member, Membership
from cluster.roles import Role
from common.config import DEFAULT_BUS_PORT, DEFAULT_JOIN_PORT, NodeConfig, ports_to_try
from common.limits import MAX_JOIN_ENDPOINTS
from common.rate_limit import RateLimit

logger = logging.getLogger(__name__)

KNOCKS_A_SECOND = 10
SAY_AGAIN_S = 60.0  # the same sentence about who stays outside
MOST_SAID = 10  # sentences in that time
MOST_JOIN_ENDPOINTS_KNOWN = 1024

Announce = Callable[[PeerAuthenticated | PeerRefused], None]


class Peering:
    """Used on the hub's thread only."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        poller: zmq.Poller,
        config: NodeConfig,
        door: Authenticator,
        counters: Counter[str],
        announce: Announce,
        links: Links,
        numbers: Sequencer,
    ) -> None:
        """Listen. Raises OSError with a sentence."""
        self._door, self._counters, self._announce = door, counters, announce
        self._links, self._node_id, self._numbers = links, config.node_id, numbers
        self._zap = ZapHandler(context, door.allow)
        self._knocks = JoinClient(context, poller, door, numbers, self._let_in, self._refused)
        self._recent: list[float] = []
        self._said = RateLimit(SAY_AGAIN_S, MOST_SAID)
        self.join_endpoints: dict[str, str] = {}  # join port as it was dialled -> the bus end point behind it
        try:
            ports = ports_to_try(config.bus_port, DEFAULT_BUS_PORT)
            self.bus = Listener(context, config.host, ports, CurveServer(door.pair, BUS), counters)
            self.join_endpoint = self._open_join_port(context, config) if door.role is Role.MEMBER else None
        except OSError:
            self._zap.close()
            raise
        for port in (self.bus, self.join_endpoint):
            if port:
                poller.register(port.socket, zmq.POLLIN)
                poller.register(port.monitor, zmq.POLLIN)

    def _open_join_port(self, context: zmq.Context[zmq.Socket[bytes]], config: NodeConfig) -> Listener:
        ports = ports_to_try(config.join_port, DEFAULT_JOIN_PORT)
        guard = CurveServer(self._door.join_endpoint, JOIN)
        return Listener(context, config.host, ports, guard, self._counters, JOIN_BYTES)

    @property
    def join_address(self) -> str:
        """Where others knock, without its key; empty for a node whose role has no join port."""
        return address_of(self.join_endpoint.endpoint) if self.join_endpoint else ""

    def knock(self, endpoint: str) -> None:
        """Knock at a join port. Raises ValueError for what is no end point."""
        self._knocks.knock(endpoint)

    def serve(self, socket: zmq.Socket[bytes]) -> bool:
        """Something came on a socket that is not the bus's; false where it is none of ours. Raises WireError."""
        if self._knocks.serve(socket, self.bus.endpoint):
            return True
        if self.join_endpoint and socket is self.join_endpoint.socket:
            self._knocked(self.join_endpoint)
        elif self.join_endpoint and socket is self.join_endpoint.monitor:
            if self.join_endpoint.from_monitor():
                name = self._door.code.name
                self._tell("", FailureCode.WRONG_CODE, f"somebody knocked with a wrong join code for cluster {name}")
        elif socket is self.bus.monitor:
            self.bus.from_monitor()
        else:
            return False
        return True

    def tend(self, now: float) -> None:
        """What is due: knocks that nobody answered, ports to listen on again."""
        self._knocks.expire(now)
        self.bus.tend(now)
        if self.join_endpoint:
            self.join_endpoint.tend(now)

    def rotated(self) -> None:
        """The join code is another one: the join port's key too."""
        if self.join_endpoint:
            self.join_endpoint.listen_as(CurveServer(self._door.join_endpoint, JOIN))

    def close(self) -> None:
        """Close everything."""
        self._knocks.close()
        for port in (self.bus, self.join_endpoint):
            if port:
                port.close()
        self._zap.close()

    # -- at our join port

    def _knocked(self, join_endpoint: Listener) -> None:
        key, source, frames = join_endpoint.receive()
        envelope = decode(frames)
        if not isinstance(envelope.message, JoinRequest):
            raise WireError("at the join port")
        join_endpoint.answer(source, self._reply(envelope, self._judge(bytes.fromhex(key), envelope.message)))

    def _judge(self, key: bytes, knock: JoinRequest) -> JoinAccept | RequestFailed:
        try:
            self._check_rate()
            self._check_life(key, knock)
            before = self._door.members
            welcome = self._door.knocked(key, knock, self.bus.endpoint)
            self._met("", self._door.members.require(node_id_of(key)), before)
            join_endpoints = tuple(peer.join_endpoint for peer in self._links.standing() if peer.join_endpoint)[
                :MAX_JOIN_ENDPOINTS
            ]
            return msgspec.structs.replace(welcome, join_endpoints=join_endpoints)
        except JoinRefused as error:
            if error.code not in (FailureCode.SELF, FailureCode.BUSY):
                self._tell("", error.code, f"{knock.name} was not let in: {error}")
            return RequestFailed(error.code, str(error))

    def _check_rate(self) -> None:
        now = time.monotonic()
        self._recent = [at for at in self._recent if now - at < 1]
        if len(self._recent) >= KNOCKS_A_SECOND:
            raise JoinRefused(FailureCode.BUSY, "too many nodes knock at this join port; try again soon")
        self._recent.append(now)

    def _check_life(self, key: bytes, knock: JoinRequest) -> None:
        """A key whose node is linked already, and alive, belongs to no second node."""
        life = self._links.life_of(node_id_of(key))
        if life not in (None, knock.incarnation):
            raise JoinRefused(FailureCode.DUPLICATE, duplicate(knock.name))

    def _reply(self, envelope: Envelope, reply: Message) -> list[bytes]:
        to = envelope.header.sender
        return encode(to, self._numbers.header(reply, to, envelope.header.id), reply)

    # -- at others' join ports

    def _let_in(self, endpoint: str, welcome: JoinAccept) -> None:
        before = self._door.members
        try:
            member = self._door.welcomed(welcome)
        except JoinRefused as error:
            self._refused(endpoint, error.code, str(error))
            return
        self.join_endpoints[endpoint] = welcome.endpoint
        while len(self.join_endpoints) > MOST_JOIN_ENDPOINTS_KNOWN:
            del self.join_endpoints[next(iter(self.join_endpoints))]
        self._met(endpoint, member, before)
        self._links.dial(welcome.endpoint)
        self._meet_others(welcome.join_endpoints)

    def _met(self, endpoint: str, member: Member, before: Membership) -> None:
        if news := self._door.news(member, before):
            logger.warning("%s", news)
        self._announce(PeerAuthenticated(endpoint, member.node_id, member.name, news))

    def _meet_others(self, join_endpoints: Sequence[str]) -> None:
        """Every member is linked to every other, also where no beacon gets through."""
        known = {*self.join_endpoints, *(peer.join_endpoint for peer in self._links.standing()), self.join_address}
        for join_endpoint in [join_endpoint for join_endpoint in join_endpoints if join_endpoint not in known]:
            with suppress(ValueError):
                self._knocks.knock(join_endpoint)

    def _refused(self, endpoint: str, code: FailureCode, sentence: str) -> None:
        if code is FailureCode.SELF:
            self._announce(PeerAuthenticated(endpoint, self._node_id, ""))
        else:
            self._announce(PeerRefused(endpoint, code, sentence))

    def _tell(self, endpoint: str, code: FailureCode, sentence: str) -> None:
        """To our own node and the log, each sentence once a minute: outsiders can make us say it."""
        if self._said.pass_on(sentence, time.monotonic()) is not None:
            logger.warning("%s", sentence)
            self._announce(PeerRefused(endpoint, code, sentence))
