"""Knocking at other nodes' join ports: a DEALER each, for three seconds at most. What is said there is the
doorkeeper's.

Each ends in one call: `let_in` with the welcome, or `refused` with a code and a sentence.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import zmq
from zmq.utils.monitor import recv_monitor_message

from bus.messages import JoinAccept, RequestFailed
from bus.net.endpoints import with_key
from bus.net.sockets import connect, open_socket
from bus.peering.authenticator import Authenticator
from bus.sequencing import Sequencer
from bus.wire import WireError, decode, encode
from cluster.failures import FailureCode

KNOCK_WITHIN_S = 3.0
MOST = 64  # join ports knocked at at one time
JOIN_BYTES = 4096  # one frame at a join port

LetIn = Callable[[str, JoinAccept], None]
Refused = Callable[[str, FailureCode, str], None]

_WATCHED = (
    zmq.Event.HANDSHAKE_SUCCEEDED
    | zmq.Event.HANDSHAKE_FAILED_NO_DETAIL
    | zmq.Event.HANDSHAKE_FAILED_PROTOCOL
    | zmq.Event.HANDSHAKE_FAILED_AUTH
    | zmq.Event.CLOSED
    | zmq.Event.CONNECT_RETRIED
)


@dataclass(eq=False, slots=True)
class _JoinAttempt:
    endpoint: str
    dealer: zmq.Socket[bytes]
    monitor: zmq.Socket[bytes]
    until: float


class JoinClient:
    """Used on the hub's thread only; its sockets are in the hub's poller while they are open."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        poller: zmq.Poller,
        door: Authenticator,
        numbers: Sequencer,
        let_in: LetIn,
        refused: Refused,
    ) -> None:
        self._context, self._poller, self._door = context, poller, door
        self._let_in, self._refused, self._numbers = let_in, refused, numbers
        self._knocks: dict[str, _JoinAttempt] = {}
        self._by_socket: dict[zmq.Socket[bytes], _JoinAttempt] = {}

    def knock(self, endpoint: str) -> None:
        """Begin to join at `tcp://host:port`, unless we do already. Raises ValueError for an invalid endpoint."""
        if endpoint in self._knocks or len(self._knocks) >= MOST:
            return
        dealer = open_socket(self._context, zmq.DEALER, largest_frame=JOIN_BYTES)
        dealer.setsockopt(zmq.RECONNECT_IVL, -1)
        monitor = dealer.get_monitor_socket(_WATCHED)
        knock = _JoinAttempt(endpoint, dealer, monitor, time.monotonic() + KNOCK_WITHIN_S)
        self._knocks[endpoint] = knock
        for socket in (dealer, monitor):
            self._by_socket[socket] = knock
            self._poller.register(socket, zmq.POLLIN)
        try:
            connect(dealer, with_key(endpoint, self._door.join_endpoint.public), self._door.pair)
        except ValueError:
            self._end(knock)
            raise

    def serve(self, socket: zmq.Socket[bytes], own_endpoint: str) -> bool:
        """Something came on a socket; false where it is none of ours."""
        knock = self._by_socket.get(socket)
        if knock is None:
            return False
        if socket is knock.dealer:
            self._answered(knock)
        else:
            self._happened(knock, recv_monitor_message(socket)["event"], own_endpoint)
        return True

    def expire(self, now: float) -> None:
        """End what nobody answered in time."""
        for knock in [knock for knock in self._knocks.values() if knock.until < now]:
            self._fail(knock, FailureCode.SILENT, f"nobody answers at {knock.endpoint}; does a node run there?")

    def close(self) -> None:
        """End all."""
        for knock in list(self._knocks.values()):
            self._end(knock)

    def _happened(self, knock: _JoinAttempt, event: int, own_endpoint: str) -> None:
        name, where = self._door.code.name, knock.endpoint
        if event == zmq.Event.HANDSHAKE_SUCCEEDED:
            message = self._door.knock(own_endpoint)
            frames = encode("/hub", self._numbers.header(message, "/hub"), message)
            knock.dealer.send_multipart(frames, zmq.DONTWAIT)
        elif event == zmq.Event.HANDSHAKE_FAILED_AUTH:
            self._fail(
                knock,
                FailureCode.REVOKED,
                f"the node at {where} refuses this node's key: it was revoked in cluster {name}",
            )
        elif event in (zmq.Event.HANDSHAKE_FAILED_NO_DETAIL, zmq.Event.HANDSHAKE_FAILED_PROTOCOL):
            sentence = (
                f"wrong join code for cluster {name}: the join port at {where} does not open; "
                "get the present code there with `exobus cluster invite`"
            )
            self._fail(knock, FailureCode.WRONG_CODE, sentence)
        else:
            self._fail(knock, FailureCode.SILENT, f"nobody answers at {where}; does a node run there?")

    def _answered(self, knock: _JoinAttempt) -> None:
        try:
            message = decode(knock.dealer.recv_multipart()).message
        except WireError as error:
            message = RequestFailed(
                FailureCode.VERSION, f"the join port at {knock.endpoint} speaks another protocol ({error})"
            )
        self._end(knock)
        if isinstance(message, JoinAccept):
            self._let_in(knock.endpoint, message)
        elif isinstance(message, RequestFailed):
            self._refused(knock.endpoint, message.code, message.message)

    def _fail(self, knock: _JoinAttempt, code: FailureCode, sentence: str) -> None:
        self._end(knock)
        self._refused(knock.endpoint, code, sentence)

    def _end(self, knock: _JoinAttempt) -> None:
        del self._knocks[knock.endpoint]
        knock.dealer.disable_monitor()
        for socket in (knock.dealer, knock.monitor):
            del self._by_socket[socket]
            self._poller.unregister(socket)
            socket.close(0)
