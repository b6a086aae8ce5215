"""`gateway.core.session`: what an owner hears of its session, in order, each once, and how long it waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.dataplane.frames import Flag, Frame, FrameError
from cluster.openings import Opening
from cluster.placement import Instance
from cluster.sampling import SamplingParams
from gateway.core import session as session_module
from gateway.core.session import QueuePosition, Session, SessionFailed, Token

PROMPT = (1, 2, 3)
SOON_S = 0.02
LATE_S = 60.0


def opened(max_tokens: int = 100) -> Session:
    """A session of three prompt tokens."""
    opening = Opening(PROMPT, len(PROMPT), max_tokens, frozenset({2}), SamplingParams(), ())
    return Session(Instance("i", "m", 1, ()), opening)


def frame(index: int, flags: int = Flag.TOKEN) -> Frame:
    """The head of a frame whose first token is number `index`."""
    return Frame(flags, 1, 1, position=len(PROMPT) + index)


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run `work`, which never takes long."""
    asyncio.run(asyncio.wait_for(work, 10.0))


async def tokens(session: Session, count: int) -> list[Token]:
    """The next so many tokens."""
    found = [await session.next() for _ in range(count)]
    assert all(isinstance(token, Token) for token in found)
    return [token for token in found if isinstance(token, Token)]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.data())
def test_tokens_come_once_and_in_order_however_they_are_cut_into_frames(said: list[int], data: st.DataObject) -> None:
    async def test() -> None:
        session, heard = opened(), 0
        while heard < len(said):
            begin = data.draw(st.integers(0, heard))
            end = data.draw(st.integers(heard + 1, len(said)))
            flags = Flag.TOKEN | (Flag.FINISHED if end == len(said) else 0)
            session.hear_tokens(frame(begin, flags), said[begin:end])
            heard = end
        expected = [Token(token, at == len(said) - 1) for at, token in enumerate(said)]
        assert await tokens(session, len(said)) == expected

    run(test())


def test_a_frame_that_leaves_a_gap_fails_the_session_after_what_came_before_it() -> None:
    async def test() -> None:
        session = opened()
        session.hear_tokens(frame(0), [5, 6])
        session.hear_tokens(frame(3), [8])
        assert await tokens(session, 2) == [Token(5, False), Token(6, False)]
        with pytest.raises(SessionFailed) as caught:
            await session.next()
        assert caught.value.code == "token_lost"

    run(test())


def test_no_more_tokens_are_taken_than_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "NEXT_TOKEN_WITHIN_S", SOON_S)

    async def test() -> None:
        session = opened(max_tokens=2)
        session.hear_tokens(frame(0), [5, 6, 7, 8])
        await tokens(session, 2)
        with pytest.raises(SessionFailed):
            await session.next()

    run(test())


def test_of_several_places_only_the_latest_is_read() -> None:
    async def test() -> None:
        session = opened()
        for ahead in (5, 4, 3):
            session.hear_place(QueuePosition(ahead, 0))
        session.hear_tokens(frame(0), [7])
        assert await session.next() == QueuePosition(3, 0)
        assert await session.next() == Token(7, False)

    run(test())


def test_a_place_after_a_token_is_refused() -> None:
    session = opened()
    session.hear_tokens(frame(0), [7])
    with pytest.raises(FrameError):
        session.hear_place(QueuePosition(0, 0))


def test_a_place_that_comes_after_the_admission_does_not_put_the_session_back() -> None:
    async def test() -> None:
        session = opened()
        session.hear_place(QueuePosition(1, 0))
        session.hear_place(QueuePosition(0, 2))
        with pytest.raises(FrameError):
            session.hear_place(QueuePosition(1, 0))
        assert await session.next() == QueuePosition(0, 2)

    run(test())


@pytest.mark.parametrize(
    ("place", "short"),
    [
        (None, "FIRST_TOKEN_WITHIN_S"),
        (QueuePosition(1, 0), "PLACE_WITHIN_S"),
        (QueuePosition(0, 0), "FIRST_TOKEN_WITHIN_S"),
    ],
)
def test_a_session_waits_as_long_as_its_place_lets_expect(
    monkeypatch: pytest.MonkeyPatch, place: QueuePosition | None, short: str
) -> None:
    for name in ("FIRST_TOKEN_WITHIN_S", "PLACE_WITHIN_S", "NEXT_TOKEN_WITHIN_S"):
        monkeypatch.setattr(session_module, name, SOON_S if name == short else LATE_S)

    async def test() -> None:
        session = opened()
        if place is not None:
            session.hear_place(place)
            assert await session.next() == place
        with pytest.raises(SessionFailed) as caught:
            await session.next()
        assert (caught.value.code, str(SOON_S) in caught.value.message) == ("timeout", True)

    run(test())
