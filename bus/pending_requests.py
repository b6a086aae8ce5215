"""The requests of one actor that await their replies. No sockets here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from bus.address import HUB, Address
from bus.messages import ActorDown, Message, PeerDown, Reply, RequestFailed
from bus.wire import Envelope
from cluster.failures import FailureCode


class _Pending(NamedTuple):
    to: Address
    reply: asyncio.Future[Message]


class PendingRequests:
    """Requests by the id of the work, of an actor of the node `node_id`."""

    def __init__(self, node_id: str) -> None:
        self._hub = str(Address(node_id, HUB))
        self._pending: dict[str, _Pending] = {}

    def add(self, request: str, to: Address) -> asyncio.Future[Message]:
        """Return the future of the reply to a request that is sent now."""
        self._pending[request] = _Pending(to, asyncio.get_running_loop().create_future())
        return self._pending[request].reply

    def remove(self, request: str) -> None:
        """Forget a request that is over."""
        self._pending.pop(request, None)

    def resolve(self, envelope: Envelope, reply: Reply) -> bool:
        """Pass a reply to its request, if that still waits.

        Returns False for a reply that does not count: only the node that was asked may reply, or the own hub if it
        cannot deliver.
        """
        pending = self._pending.get(envelope.header.cause)
        if pending is None or pending.reply.done():
            return True
        if envelope.node != pending.to.node and envelope.header.sender != self._hub:
            return False
        pending.reply.set_result(reply)
        return True

    def note_loss(self, message: Message | None, node: str) -> None:
        """Fail the requests to a node or an actor that a fact of `node` says is gone."""
        match message:
            case PeerDown(node_id, reason):
                self.fail(lambda to: to.node == node_id, f"node {node_id}", reason)
            case ActorDown(name, reason):
                lost = Address(node, name)
                self.fail(lambda to: to == lost, f"actor {lost}", reason)

    def fail(self, is_lost: Callable[[Address], bool], what: str, reason: str) -> None:
        """Fail the requests to the addresses that are lost."""
        failed = RequestFailed(FailureCode.UNDELIVERABLE, f"{what} is gone: {reason}")
        for pending in self._pending.values():
            if is_lost(pending.to) and not pending.reply.done():
                pending.reply.set_result(failed)
