"""The requests of one actor that await their replies. No sockets here.

A request and its checks go to the same actor, over the same connections of each hub on the way, and so do the reply and
the answers to the checks. Connections keep order, and an actor sends the reply before it ends to serve the request. So
the reply comes before an answer that the request is not served. If a connection between hubs is replaced, `PeerDown`
fails the request, because hubs begin every connection with a hello.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from bus.address import HUB, Address
from bus.messages import ActorDown, Message, PeerDown, Reply, RequestFailed
from bus.wire import Envelope
from cluster.failures import FailureCode


class RequestError(Exception):
    """Some work failed. `code` is for programs, `message` is a sentence for people.

    If an actor raises it while it serves work, code and message are sent to the requester as `request.failed`.
    """

    def __init__(self, code: FailureCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class _Pending(NamedTuple):
    to: Address
    reply: asyncio.Future[Message]


class PendingRequests:
    """Requests by the id of the work, of an actor of the node `node_id`."""

    def __init__(self, node_id: str) -> None:
        self._hub = str(Address(node_id, HUB))
        self._pending: dict[str, _Pending] = {}
        self._checks: dict[str, str] = {}  # from the id of a check to that of its request

    def add(self, request: str, to: Address) -> asyncio.Future[Message]:
        """Return the future of the reply to a request that is sent now."""
        self._pending[request] = _Pending(to, asyncio.get_running_loop().create_future())
        return self._pending[request].reply

    def remove(self, request: str) -> None:
        """Forget a request that is over."""
        self._pending.pop(request, None)
        self._checks = {check: checked for check, checked in self._checks.items() if checked != request}

    def check(self, request: str, check: str) -> None:
        """Note that a check of a request is sent, as work with the id `check`."""
        self._checks[check] = request

    def resolve(self, envelope: Envelope, reply: Reply) -> bool:
        """Pass a reply to its request, if that still waits.

        Returns False for a reply that does not count: only the node that was asked may reply, or the own hub if it
        cannot deliver. An answer to a check fails its request if that is not served; any other answer changes nothing.
        """
        cause = envelope.header.cause
        checked = self._checks.get(cause)
        pending = self._pending.get(checked or cause)
        if pending is None or pending.reply.done():
            return True
        if envelope.node != pending.to.node and envelope.header.sender != self._hub:
            return False
        if checked is None or _says_lost(reply):
            pending.reply.set_result(reply)
        return True

    def note_loss(self, message: Message | None, node: str) -> None:
        """Fail the requests to a node or an actor that a fact of `node` says is gone."""
        match message:
            case PeerDown(node_id, reason, name):
                self.fail(lambda to: to.node == node_id, f"node {name or node_id}", reason)
            case ActorDown(name, reason, final):
                next_step = "" if final else "; it is started again, try again in a moment"
                self.fail(lambda to: to == Address(node, name), f"actor {name!r}", reason + next_step)

    def fail(self, is_lost: Callable[[Address], bool], what: str, reason: str) -> None:
        """Fail the requests to the addresses that are lost."""
        failed = RequestFailed(FailureCode.UNDELIVERABLE, f"{what} is gone: {reason}")
        for pending in self._pending.values():
            if is_lost(pending.to) and not pending.reply.done():
                pending.reply.set_result(failed)


def _says_lost(answer: Reply) -> bool:
    """Return whether the answer to a check says that its request will get no reply."""
    return isinstance(answer, RequestFailed) and answer.code in (FailureCode.NOT_SERVED, FailureCode.UNDELIVERABLE)
