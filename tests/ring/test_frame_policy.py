"""`ring.frame_policy`: for every kind of frame and every place in a ring, from whom it is taken."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.dataplane.frames import GATEWAY_STAGE, Flag, Frame
from cluster.roles import Role
from ring.frame_policy import accepts, may_answer
from ring.types import NO_RING, RingView

A, B, C, OWNER, UNKNOWN_NODE = "aa", "bb", "cc", "oo", "ss"
NODES = (A, B, C)
EVERYBODY = ("", A, B, C, OWNER, UNKNOWN_NODE)
HIDDEN = 0
FROM = {  # place, kind: whom it is believed, beside processes of this user
    (0, Flag.OPEN): {A, B, C, OWNER, UNKNOWN_NODE},
    (0, Flag.CLOSE): {OWNER},
    (0, Flag.TOKEN): {C},
    (0, Flag.THROUGH): {C},
    (1, HIDDEN): {A},
    (1, Flag.OPEN): {A},
    (1, Flag.KEEP): {A},
    (1, Flag.CLOSE): {A},
    (2, HIDDEN): {B},
    (2, Flag.OPEN): {B},
    (2, Flag.KEEP): {B},
    (2, Flag.CLOSE): {B},
}
KINDS = (HIDDEN, Flag.OPEN, Flag.CLOSE, Flag.TOKEN, Flag.FAILED, Flag.PLACE, Flag.THROUGH, Flag.KEEP)


def place(index: int) -> RingView:
    return RingView(index, NODES, "", "", 0)


def frame(flags: int, stage: int = GATEWAY_STAGE) -> Frame:
    return Frame(flags, 1, 1, stage=stage)


@pytest.mark.parametrize("sender", EVERYBODY)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("more", [0, Flag.ROLLBACK | Flag.MORE | Flag.LAST | Flag.FINISHED], ids=["", "modified"])
def test_a_frame_is_taken_only_from_whom_it_can_come(index: int, kind: int, sender: str, more: int) -> None:
    expected = (index, kind) in FROM and sender in {"", *FROM[index, kind]}
    assert accepts(frame(kind | more), sender, Role.MEMBER, place(index), OWNER) is expected


@given(st.integers(0, 2**16 - 1), st.sampled_from(EVERYBODY), st.integers(0, 2), st.integers(0, 255))
def test_what_is_of_several_kinds_is_of_none(flags: int, sender: str, index: int, stage: int) -> None:
    if sum(bool(flags & kind) for kind in KINDS) > 1:
        assert not accepts(frame(flags, stage), sender, Role.MEMBER, place(index), OWNER)


@pytest.mark.parametrize(("role", "may"), [(Role.MEMBER, True), (Role.GATEWAY, True), (Role.OBSERVER, False)])
def test_an_observer_opens_no_session(role: Role, may: bool) -> None:
    assert accepts(frame(Flag.OPEN), UNKNOWN_NODE, role, place(0), None) is may


def test_a_node_without_a_role_opens_no_session() -> None:
    assert not accepts(frame(Flag.OPEN), UNKNOWN_NODE, None, place(0), None)


@pytest.mark.parametrize("sender", NODES)
def test_every_stage_may_end_a_session_at_the_first(sender: str) -> None:
    assert accepts(frame(Flag.CLOSE, stage=2), sender, Role.MEMBER, place(0), OWNER)
    assert not accepts(frame(Flag.CLOSE, stage=2), OWNER, Role.MEMBER, place(0), OWNER)


def test_the_end_of_what_nobody_opened_does_no_harm() -> None:
    assert accepts(frame(Flag.CLOSE), UNKNOWN_NODE, Role.MEMBER, place(0), None)


@pytest.mark.parametrize("sender", [A, UNKNOWN_NODE])
@pytest.mark.parametrize("kind", [Flag.TOKEN, Flag.THROUGH])
def test_a_stage_without_a_ring_has_no_last_stage(sender: str, kind: int) -> None:
    assert not accepts(frame(kind), sender, Role.MEMBER, NO_RING, None)


@pytest.mark.parametrize(
    ("index", "sender", "owner", "may"),
    [
        (0, OWNER, OWNER, True),
        (0, OWNER, UNKNOWN_NODE, False),
        (0, OWNER, "", False),
        (0, "", OWNER, True),
        (0, "", "", True),
        (1, A, OWNER, True),
        (1, A, "", False),
        (1, "", "", True),
    ],
)
def test_the_first_stage_answers_who_asked_and_the_others_the_owner_that_it_saw(
    index: int, sender: str, owner: str, may: bool
) -> None:
    assert may_answer(sender, owner, place(index)) is may
