"""The client side of joining: a DEALER for each join port that is asked, for three seconds at most.

It does not know what requests and replies prove; `bus.peering.authenticator` does.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import zmq
from zmq.utils.monitor import recv_monitor_message

from bus.address import HUB, Address
from bus.hub_context import HubContext
from bus.messages import JoinAccept, Message, RequestFailed
from bus.net.endpoints import with_key
from bus.net.sockets import connect, open_socket
from bus.peering.authenticator import Authenticator
from bus.wire import WireError, decode
from cluster.failures import FailureCode

TIMEOUT_S = 3.0
MAX_ATTEMPTS = 64  # at one time
JOIN_BYTES = 4096  # the largest frame at a join port

_WATCHED = (
    zmq.Event.CONNECTED
    | zmq.Event.HANDSHAKE_SUCCEEDED
    | zmq.Event.HANDSHAKE_FAILED_NO_DETAIL
    | zmq.Event.HANDSHAKE_FAILED_PROTOCOL
    | zmq.Event.HANDSHAKE_FAILED_AUTH
    | zmq.Event.CLOSED
    | zmq.Event.CONNECT_RETRIED
)


@dataclass(eq=False, slots=True)
class _Attempt:
    endpoint: str
    dealer: zmq.Socket[bytes]
    monitor: zmq.Socket[bytes]
    deadline: float
    reached: bool = False  # something listens there


class JoinClient:
    """Used on the hub's thread only. Each attempt ends with one call: `accepted`, or `refused` with code and sentence.

    `endpoint` is the node's own bus port, which it names in its requests.
    """

    def __init__(
        self,
        context: HubContext,
        authenticator: Authenticator,
        endpoint: str,
        accepted: Callable[[str, JoinAccept], None],
        refused: Callable[[str, FailureCode, str], None],
    ) -> None:
        self._context, self._authenticator, self._endpoint = context, authenticator, endpoint
        self._accepted, self._refused = accepted, refused
        self._attempts: dict[str, _Attempt] = {}

    def join(self, endpoint: str) -> None:
        """Ask to join at `tcp://host:port`, unless that is under way. Raises ValueError if it is no endpoint."""
        if endpoint in self._attempts or len(self._attempts) >= MAX_ATTEMPTS:
            return
        dealer = open_socket(self._context.zmq_context, zmq.DEALER, largest_frame=JOIN_BYTES)
        dealer.setsockopt(zmq.RECONNECT_IVL, -1)
        dealer.setsockopt(zmq.HANDSHAKE_IVL, round(2000 * TIMEOUT_S))  # `expire` is to end a silent one
        attempt = _Attempt(endpoint, dealer, dealer.get_monitor_socket(_WATCHED), time.monotonic() + TIMEOUT_S)
        self._attempts[endpoint] = attempt
        self._context.reactor.register(dealer, partial(self._read_reply, attempt))
        self._context.reactor.register(attempt.monitor, partial(self._read_event, attempt))
        try:
            connect(dealer, with_key(endpoint, self._authenticator.join_pair.public), self._authenticator.pair)
        except ValueError:
            self._end(attempt)
            raise

    def expire(self, now: float) -> None:
        """End the attempts that got no reply in time."""
        for attempt in [attempt for attempt in self._attempts.values() if attempt.deadline < now]:
            self._fail(attempt, FailureCode.SILENT, _silent(attempt))

    def close(self) -> None:
        """End all attempts without a call."""
        for attempt in list(self._attempts.values()):
            self._end(attempt)

    def _read_event(self, attempt: _Attempt) -> None:
        event = recv_monitor_message(attempt.monitor)
        cluster, endpoint = self._authenticator.code.name, attempt.endpoint
        match event["event"]:
            case zmq.Event.CONNECTED:
                attempt.reached = True
            case zmq.Event.HANDSHAKE_SUCCEEDED:
                request = self._authenticator.join_request(self._endpoint)
                attempt.dealer.send_multipart(self._context.sequencer.encode(Address("", HUB), request), zmq.DONTWAIT)
            case zmq.Event.HANDSHAKE_FAILED_AUTH:
                own_id = self._authenticator.pair.node_id
                why = (
                    f"the node at {endpoint} refuses this node's key: it was revoked in cluster {cluster}; "
                    f"on a member, `exobus cluster approve {own_id}` approves it again"
                )
                self._fail(attempt, FailureCode.REVOKED, why)
            # A join port closes the connection of a client that cannot know its key, which libzmq shows as EPIPE.
            case zmq.Event.HANDSHAKE_FAILED_NO_DETAIL if event["value"] == errno.EPIPE:
                why = (
                    f"wrong join code for cluster {cluster}: the join port at {endpoint} has another one; "
                    "get the present code there with `exobus cluster invite`"
                )
                self._fail(attempt, FailureCode.WRONG_CODE, why)
            case zmq.Event.HANDSHAKE_FAILED_PROTOCOL:
                why = f"what listens at {endpoint} is no join port of exobus; check the address"
                self._fail(attempt, FailureCode.BAD_ENDPOINT, why)
            case _:
                self._fail(attempt, FailureCode.SILENT, _silent(attempt))

    def _read_reply(self, attempt: _Attempt) -> None:
        message: Message | None
        try:
            message = decode(attempt.dealer.recv_multipart()).message
        except WireError as error:
            why = f"the join port at {attempt.endpoint} speaks another protocol ({error}); update exobus there or here"
            message = RequestFailed(FailureCode.VERSION, why)
        self._end(attempt)
        if isinstance(message, JoinAccept):
            self._accepted(attempt.endpoint, message)
        elif isinstance(message, RequestFailed):
            self._refused(attempt.endpoint, message.code, message.message)

    def _fail(self, attempt: _Attempt, code: FailureCode, why: str) -> None:
        self._end(attempt)
        self._refused(attempt.endpoint, code, why)

    def _end(self, attempt: _Attempt) -> None:
        del self._attempts[attempt.endpoint]
        attempt.dealer.disable_monitor()
        for socket in (attempt.dealer, attempt.monitor):
            self._context.reactor.unregister(socket)
            socket.close(0)


def _silent(attempt: _Attempt) -> str:
    if attempt.reached:
        return (
            f"the node at {attempt.endpoint} does not respond; it is asked again, and if that lasts, restart it there"
        )
    return f"no node answers at {attempt.endpoint}; start one there, or check the address"
