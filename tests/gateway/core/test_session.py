"""`gateway.core.session`: the owner reads each token once and in order, and waits within a deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.failures import FailureCode
from cluster.openings import Opening
from cluster.placement import Instance
from cluster.sampling import SamplingParams
from gateway.core import session as session_module
from gateway.core.session import QueuePosition, Session, SessionFailed, Token
from gateway.core.session_check import CHECK_EVERY_S, StageReply

PROMPT = (1, 2, 3)
SOON_S = 0.02
LATE_S = 60.0


def opened(max_tokens: int = 100) -> Session:
    """Return a session of three prompt tokens."""
    opening = Opening(PROMPT, len(PROMPT), max_tokens, frozenset({2}), SamplingParams(), ())
    return Session(Instance("i", "m", 1, ()), opening)


def receive(session: Session, index: int, tokens: list[int], *, finished: bool = False) -> None:
    """Receive the tokens from number `index` on."""
    session.receive_tokens(len(PROMPT) + index, tokens, finished=finished)


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run `work`, which never takes long."""
    asyncio.run(asyncio.wait_for(work, 10.0))


async def tokens(session: Session, count: int) -> list[Token]:
    """Read the next so many tokens."""
    found = [await session.next() for _ in range(count)]
    assert all(isinstance(token, Token) for token in found)
    return [token for token in found if isinstance(token, Token)]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.data())
def test_tokens_come_once_and_in_order(sent: list[int], data: st.DataObject) -> None:
    async def test() -> None:
        session, received = opened(), 0
        while received < len(sent):
            begin = data.draw(st.integers(0, received))
            end = data.draw(st.integers(received + 1, len(sent)))
            receive(session, begin, sent[begin:end], finished=end == len(sent))
            received = end
        expected = [Token(token, at == len(sent) - 1) for at, token in enumerate(sent)]
        assert await tokens(session, len(sent)) == expected

    run(test())


def test_gap_fails_the_session_after_earlier_tokens() -> None:
    async def test() -> None:
        session = opened()
        receive(session, 0, [5, 6])
        receive(session, 3, [8])
        assert await tokens(session, 2) == [Token(5, False), Token(6, False)]
        with pytest.raises(SessionFailed) as caught:
            await session.next()
        assert caught.value.code == "token_lost"

    run(test())


def test_tokens_beyond_the_limit_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "NEXT_TOKEN_TIMEOUT_S", SOON_S)

    async def test() -> None:
        session = opened(max_tokens=2)
        receive(session, 0, [5, 6, 7, 8])
        await tokens(session, 2)
        with pytest.raises(SessionFailed):
            await session.next()

    run(test())


def test_stages_are_asked_while_something_has_to_come() -> None:
    session = opened()
    later = time.monotonic() + CHECK_EVERY_S
    assert not session.is_silent(later), "its opening has not been sent"
    session.opened()
    assert not session.is_silent(later - 1.0)
    later = time.monotonic() + CHECK_EVERY_S
    assert session.is_silent(later)
    receive(session, 0, [7])
    assert session.is_silent(time.monotonic() + CHECK_EVERY_S)
    receive(session, 1, [8], finished=True)
    assert not session.is_silent(time.monotonic() + CHECK_EVERY_S)


def test_lost_session_fails_after_earlier_tokens() -> None:
    async def test() -> None:
        session = opened()
        session.opened()
        receive(session, 0, [7])
        for turns in (1, 2):
            session.judge((StageReply(turns, None),), time.monotonic())
        assert await session.next() == Token(7, False)
        with pytest.raises(SessionFailed, match="lost on its way") as caught:
            await session.next()
        assert caught.value.code == FailureCode.SESSION_LOST
        assert not session.is_silent(time.monotonic() + CHECK_EVERY_S)

    run(test())


def test_only_the_latest_queue_position_is_read() -> None:
    async def test() -> None:
        session = opened()
        for ahead in (5, 4, 3):
            session.receive_queue_position(QueuePosition(ahead, 0))
        receive(session, 0, [7])
        assert await session.next() == QueuePosition(3, 0)
        assert await session.next() == Token(7, False)

    run(test())


def test_queue_position_after_a_token_is_refused() -> None:
    session = opened()
    receive(session, 0, [7])
    assert not session.receive_queue_position(QueuePosition(0, 0))


def test_queue_position_after_the_admission_is_refused() -> None:
    async def test() -> None:
        session = opened()
        session.receive_queue_position(QueuePosition(1, 0))
        session.receive_queue_position(QueuePosition(0, 2))
        assert not session.receive_queue_position(QueuePosition(1, 0))
        assert await session.next() == QueuePosition(0, 2)

    run(test())


@pytest.mark.parametrize(
    ("position", "short"),
    [
        (None, "FIRST_TOKEN_TIMEOUT_S"),
        (QueuePosition(1, 0), "QUEUE_POSITION_TIMEOUT_S"),
        (QueuePosition(0, 0), "FIRST_TOKEN_TIMEOUT_S"),
    ],
)
def test_deadline_depends_on_the_queue_position(
    monkeypatch: pytest.MonkeyPatch, position: QueuePosition | None, short: str
) -> None:
    for name in ("FIRST_TOKEN_TIMEOUT_S", "QUEUE_POSITION_TIMEOUT_S", "NEXT_TOKEN_TIMEOUT_S"):
        monkeypatch.setattr(session_module, name, SOON_S if name == short else LATE_S)

    async def test() -> None:
        session = opened()
        if position is not None:
            session.receive_queue_position(position)
            assert await session.next() == position
        with pytest.raises(SessionFailed) as caught:
            await session.next()
        assert (caught.value.code, str(SOON_S) in caught.value.message) == ("timeout", True)

    run(test())
