"""`bus.pending_requests`: which replies, facts and answers to checks end a request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from bus.address import Address
from bus.messages import ActorDown, Message, PeerDown, Reply, RequestDone, RequestFailed, RequestWorking
from bus.pending_requests import PendingRequests
from bus.wire import Envelope, new_header
from cluster.failures import FailureCode

A, B = "a" * 16, "b" * 16
FAR = Address(B, "node")


def reply(cause: str, message: Reply, sender: str = f"{B}/node") -> tuple[Envelope, Reply]:
    return Envelope(Address(A, "asker"), new_header(message, sender, cause=cause), message), message


def with_one(test: Callable[[PendingRequests, asyncio.Future[Message]], None]) -> None:
    """Run with the request `r` to an actor of node B, and its check `c`."""

    async def main() -> None:
        pending = PendingRequests(A)
        future = pending.add("r", FAR)
        pending.check("r", "c")
        test(pending, future)

    asyncio.run(main())


@pytest.mark.parametrize("code", [FailureCode.NOT_SERVED, FailureCode.UNDELIVERABLE])
def test_check_that_finds_nobody_fails_the_request(code: FailureCode) -> None:
    def test(pending: PendingRequests, future: asyncio.Future[Message]) -> None:
        failed = RequestFailed(code, "try again")
        assert pending.resolve(*reply("c", failed))
        assert future.result() == failed

    with_one(test)


@pytest.mark.parametrize(
    "answer",
    [
        RequestWorking(),
        RequestFailed(FailureCode.UNSUPPORTED, "an older version"),
        RequestFailed(FailureCode.BUSY, "its queue is full"),
    ],
    ids=lambda answer: getattr(answer, "code", "working"),
)
def test_other_answers_to_a_check_change_nothing(answer: Reply) -> None:
    def test(pending: PendingRequests, future: asyncio.Future[Message]) -> None:
        assert pending.resolve(*reply("c", answer))
        assert not future.done()
        assert pending.resolve(*reply("r", RequestDone()))
        assert future.result() == RequestDone()

    with_one(test)


def test_answer_of_another_node_does_not_count() -> None:
    def test(pending: PendingRequests, future: asyncio.Future[Message]) -> None:
        failed = RequestFailed(FailureCode.NOT_SERVED, "")
        assert not pending.resolve(*reply("c", failed, f"{'c' * 16}/node"))
        assert not pending.resolve(*reply("c", failed, f"{A}/another"))
        assert not future.done()
        assert pending.resolve(*reply("c", failed, f"{A}/hub"))
        assert future.done()

    with_one(test)


def test_late_answer_is_ignored() -> None:
    def test(pending: PendingRequests, future: asyncio.Future[Message]) -> None:
        pending.remove("r")
        assert pending.resolve(*reply("c", RequestFailed(FailureCode.NOT_SERVED, "")))
        assert not future.done()

    with_one(test)


def test_lost_node_or_actor_fails_its_requests() -> None:
    async def main() -> None:
        pending = PendingRequests(A)
        lost, kept = pending.add("1", FAR), pending.add("2", Address(A, "node"))
        pending.note_loss(PeerDown(B, "it left", "bob"), A)
        assert lost.result() == RequestFailed(FailureCode.UNDELIVERABLE, "node bob is gone: it left")
        assert not kept.done()
        pending.note_loss(ActorDown("node", "killed", False), B)
        assert not kept.done()
        pending.note_loss(ActorDown("node", "killed", True), A)
        assert kept.result() == RequestFailed(FailureCode.UNDELIVERABLE, "actor 'node' is gone: killed")

    asyncio.run(main())
