"""How nodes join: this node's join port, its requests at the join ports of others, and what it reports of both.

`bus.peering.authenticator` checks proofs, and `bus.peering.links` makes the links that follow.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import suppress

import msgspec
from cachetools import LRUCache

from bus.hub_context import HubContext
from bus.messages import JoinAccept, JoinRequest, PeerAuthenticated, PeerRefused, RequestFailed
from bus.net.endpoints import address_of
from bus.net.keys import node_id_of
from bus.net.listener import Listener
from bus.net.sockets import CurveServer
from bus.peering.authenticator import JOIN, Authenticator, duplicate_key
from bus.peering.join_client import JOIN_BYTES, JoinClient
from bus.peering.links import Links
from bus.wire import WireError, decode
from cluster.failures import FailureCode
from cluster.membership import JoinRefused, Member, Membership
from cluster.roles import Role
from common.config import DEFAULT_JOIN_PORT, ports_to_try
from common.limits import MAX_JOIN_ENDPOINTS
from common.rate_limit import RateLimit, TokenBuckets

logger = logging.getLogger(__name__)

MAX_REQUESTS_PER_S = 10
MAX_REPORTS = 10  # different sentences in an interval
REPORT_INTERVAL_S = 60.0
MAX_KNOWN_JOIN_ENDPOINTS = 1024


class Joining:
    """Used on the hub's thread only. Only a member has a join port."""

    def __init__(self, context: HubContext, authenticator: Authenticator, links: Links, endpoint: str) -> None:
        """Listen on the join port. `endpoint` is the node's bus port. Raises OSError with a sentence."""
        self._context, self._authenticator, self._links, self._endpoint = context, authenticator, links, endpoint
        self._client = JoinClient(context, authenticator, endpoint, self._accepted, self._refused)
        self._requests = TokenBuckets(MAX_REQUESTS_PER_S, 1)
        self._reports = RateLimit(REPORT_INTERVAL_S, MAX_REPORTS)
        self._bus_endpoints: LRUCache[str, str] = LRUCache(MAX_KNOWN_JOIN_ENDPOINTS)  # of the nodes at join ports
        self._port: Listener | None = None
        if authenticator.role is Role.MEMBER:
            ports = ports_to_try(context.config.join_port, DEFAULT_JOIN_PORT)
            self._port = Listener(
                context, ports, self._curve(), self._read_request, self._wrong_code, largest_frame=JOIN_BYTES
            )

    @property
    def endpoint(self) -> str:
        """This node's join port without its key; empty if there is none."""
        return address_of(self._port.endpoint) if self._port else ""

    def join(self, endpoint: str) -> None:
        """Ask to join at a join port. Raises ValueError if it is no endpoint."""
        self._client.join(endpoint)

    def bus_endpoint(self, endpoint: str) -> str:
        """Return the bus port of the node whose join port this is, if this node joined there; else the endpoint."""
        return str(self._bus_endpoints.get(endpoint, endpoint))

    def code_changed(self) -> None:
        """Listen with the key of the new join code."""
        if self._port:
            self._port.use_key(self._curve())

    def maintain(self, now: float) -> None:
        """End requests without a reply, and listen again if it is time to."""
        self._client.expire(now)
        if self._port:
            self._port.maintain(now)

    def close(self) -> None:
        """Close all sockets."""
        self._client.close()
        if self._port:
            self._port.close()

    def _curve(self) -> CurveServer:
        return CurveServer(self._authenticator.join_pair, JOIN)

    # -- requests of other nodes

    def _read_request(self, key: str, routing_id: bytes, frames: list[bytes]) -> None:
        envelope = decode(frames)
        if not isinstance(envelope.message, JoinRequest):
            raise WireError("no join request")
        reply = self._decide(bytes.fromhex(key), envelope.message)
        assert self._port is not None, "a request came over the join port"
        header = envelope.header
        self._port.reply(routing_id, self._context.sequencer.encode(header.sender, reply, header.id))

    def _decide(self, key: bytes, request: JoinRequest) -> JoinAccept | RequestFailed:
        node_id, before = node_id_of(key), self._authenticator.members
        try:
            if not self._requests.allow("", time.monotonic()):
                raise JoinRefused(FailureCode.BUSY, "too many nodes ask to join here; try again soon")
            if self._links.incarnation_of(node_id) not in (None, request.incarnation):
                raise JoinRefused(FailureCode.DUPLICATE, duplicate_key(request.name))
            accept = self._authenticator.check_request(key, request, self._endpoint)
            self._authenticated("", self._authenticator.members.require(node_id), before)
        except JoinRefused as error:
            if error.code not in (FailureCode.SELF, FailureCode.BUSY):
                self._report(error.code, f"{request.name} was refused: {error}")
            return RequestFailed(error.code, str(error))
        known = [peer.join_endpoint for peer in self._links.peers() if peer.join_endpoint]
        return msgspec.structs.replace(accept, join_endpoints=tuple(known[:MAX_JOIN_ENDPOINTS]))

    def _wrong_code(self) -> None:
        cluster = self._authenticator.code.name
        self._report(FailureCode.WRONG_CODE, f"a node tried to join cluster {cluster} with a wrong join code")

    def _report(self, code: FailureCode, sentence: str) -> None:
        """Log and publish a refusal; the same sentence once a minute, because any machine can cause it."""
        if self._reports.pass_on(sentence, time.monotonic()) is not None:
            logger.warning("%s", sentence)
            self._context.publish(PeerRefused("", code, sentence))

    # -- replies of other nodes

    def _accepted(self, endpoint: str, accept: JoinAccept) -> None:
        before = self._authenticator.members
        try:
            member = self._authenticator.check_accept(accept)
        except JoinRefused as error:
            self._refused(endpoint, error.code, str(error))
            return
        self._bus_endpoints[endpoint] = accept.endpoint
        self._authenticated(endpoint, member, before)
        self._links.dial(accept.endpoint)
        self._join_others(accept.join_endpoints)

    def _join_others(self, endpoints: Sequence[str]) -> None:
        """Join at all other members too: every member is linked to every other, even if no beacon reaches it."""
        known = {*self._bus_endpoints, *(peer.join_endpoint for peer in self._links.peers()), self.endpoint}
        for endpoint in [endpoint for endpoint in endpoints if endpoint not in known]:
            with suppress(ValueError):
                self._client.join(endpoint)

    def _authenticated(self, endpoint: str, member: Member, before: Membership) -> None:
        warning = self._authenticator.warning_of(member, before)
        if warning:
            logger.warning("%s", warning)
        self._context.publish(PeerAuthenticated(endpoint, member.node_id, member.name, warning))

    def _refused(self, endpoint: str, code: FailureCode, sentence: str) -> None:
        if code is FailureCode.SELF:
            self._context.publish(PeerAuthenticated(endpoint, self._context.config.node_id, ""))
        else:
            self._context.publish(PeerRefused(endpoint, code, sentence))
