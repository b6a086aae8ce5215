"""`ring.frame_policy`: for every kind of frame and every stage of a ring, from which nodes it is accepted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.dataplane.frames import GATEWAY_STAGE, Flag, Frame
from cluster.roles import Role
from ring.frame_policy import accepted_by_first, accepted_by_later

A, B, C, OWNER, UNKNOWN_NODE = "aa", "bb", "cc", "oo", "ss"
NODES = (A, B, C)
SENDERS = ("", A, B, C, OWNER, UNKNOWN_NODE)
HIDDEN = 0
FROM = {  # stage, kind: the nodes it is accepted from, beside processes of this user
    (0, Flag.OPEN): {A, B, C, OWNER, UNKNOWN_NODE},
    (0, Flag.CLOSE): {OWNER},
    (0, Flag.TOKEN): {C},
    (0, Flag.COMPUTED): {C},
    (0, Flag.STORE): {A, B, C},
    (1, HIDDEN): {A},
    (1, Flag.OPEN): {A},
    (1, Flag.STORE): {A},
    (1, Flag.CLOSE): {A},
    (2, HIDDEN): {B},
    (2, Flag.OPEN): {B},
    (2, Flag.STORE): {B},
    (2, Flag.CLOSE): {B},
}
KINDS = (HIDDEN, Flag.OPEN, Flag.CLOSE, Flag.TOKEN, Flag.FAILED, Flag.QUEUE_POSITION, Flag.COMPUTED, Flag.STORE)
MODIFIERS = Flag.ROLLBACK | Flag.MORE | Flag.SAMPLE | Flag.FINISHED


def frame(flags: int, stage: int = GATEWAY_STAGE) -> Frame:
    return Frame(flags, 1, 1, stage=stage)


def accepted(index: int, received: Frame, sender: str) -> bool:
    """Return whether the stage with this index accepts a frame of one of OWNER's sessions."""
    if index == 0:
        return accepted_by_first(received, sender, NODES, Role.MEMBER, OWNER)
    return accepted_by_later(received, sender, NODES[index - 1])


@pytest.mark.parametrize("sender", SENDERS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("modifiers", [0, MODIFIERS], ids=["plain", "modified"])
def test_each_kind_is_accepted_from_its_senders_only(index: int, kind: int, sender: str, modifiers: int) -> None:
    expected = (index, kind) in FROM and sender in {"", *FROM[index, kind]}
    assert accepted(index, frame(kind | modifiers), sender) is expected


@given(st.integers(0, 2**16 - 1), st.sampled_from(SENDERS), st.integers(0, 2), st.integers(0, 255))
def test_frame_of_several_kinds_is_refused(flags: int, sender: str, index: int, stage: int) -> None:
    if sum(bool(flags & kind) for kind in KINDS) > 1:
        assert not accepted(index, frame(flags, stage), sender)


@pytest.mark.parametrize(
    ("role", "expected"), [(Role.MEMBER, True), (Role.GATEWAY, True), (Role.OBSERVER, False), (None, False)]
)
def test_only_members_and_gateways_open_sessions(role: Role | None, expected: bool) -> None:
    assert accepted_by_first(frame(Flag.OPEN), UNKNOWN_NODE, NODES, role, None) is expected


@pytest.mark.parametrize("sender", NODES)
def test_any_stage_may_close_a_session(sender: str) -> None:
    assert accepted(0, frame(Flag.CLOSE, stage=2), sender)
    assert not accepted(0, frame(Flag.CLOSE, stage=2), OWNER)


def test_close_of_an_unknown_session_is_accepted() -> None:
    assert accepted_by_first(frame(Flag.CLOSE), UNKNOWN_NODE, NODES, Role.MEMBER, None)
