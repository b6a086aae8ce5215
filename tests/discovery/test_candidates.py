"""Who is dialled: beacons and link events in, join ports out, with time handed in."""

from __future__ import annotations

from itertools import pairwise

import pytest

from cluster.failures import FailureCode
from discovery.candidates import (
    FORGET_AFTER_S,
    LONGEST_BACK_OFF_S,
    MAX_CANDIDATES,
    OURSELVES_S,
    REFUSED_S,
    STEADY_S,
    Candidates,
)
from tests.support.beacons import JOIN, beacon, node_id

OWN = Candidates(node_id(0))
OTHER = node_id(1)
ELSEWHERE = "tcp://192.0.2.8:1"
PINNED = "tcp://kitchen.local:52414"


def dials(membership: Candidates, now: float) -> tuple[str, ...]:
    return membership.due(now)[1]


def dialled(membership: Candidates, seconds: int) -> list[float]:
    """When something is dialled, asked ten times a second."""
    when = []
    for now in (tenth / 10 for tenth in range(10 * seconds)):
        membership, due = membership.due(now)
        when += [now] * len(due)
    return when


def test_who_is_heard_is_dialled_at_once() -> None:
    assert dials(OWN.hear(beacon(), 5.0), 5.0) == (JOIN,)


def test_our_own_beacon_is_ignored() -> None:
    assert OWN.hear(beacon(0), 0.0) is OWN


def test_a_flood_of_beacons_is_bounded() -> None:
    membership = OWN
    for port in range(1, MAX_CANDIDATES + 51):
        membership = membership.hear(beacon(port, f"tcp://192.0.2.7:{port}"), 0.0)
    assert len(membership.candidates) == MAX_CANDIDATES
    assert membership.refused == {"too many candidates": 50}
    known = membership.hear(beacon(1, "tcp://192.0.2.7:1"), 1.0).hear(beacon(2, "tcp://192.0.2.7:9999"), 1.0)
    assert known.refused == membership.refused
    assert len(known.candidates) == MAX_CANDIDATES


def test_a_flood_is_forgotten_again() -> None:
    membership = OWN
    for port in range(1, MAX_CANDIDATES + 1):
        membership = membership.hear(beacon(port, f"tcp://192.0.2.7:{port}"), 0.0)
    membership, _ = membership.due(FORGET_AFTER_S)
    assert not membership.candidates


def test_dials_back_off_twofold_up_to_a_limit() -> None:
    pauses = [later - sooner for sooner, later in pairwise(dialled(OWN.pin(PINNED), 90))]
    assert pauses[:5] == pytest.approx([0.5, 1.0, 2.0, 4.0, 8.0], abs=0.11)
    assert pauses[5:] == pytest.approx([LONGEST_BACK_OFF_S] * len(pauses[5:]), abs=0.11)
    assert len(pauses) > 8


def test_a_silent_node_is_forgotten_and_a_pinned_one_is_dialled_for_ever() -> None:
    membership = OWN.hear(beacon(), 0.0).pin(PINNED)
    membership, _ = membership.due(FORGET_AFTER_S)
    assert set(membership.candidates) == {PINNED}
    assert dials(membership, 1e6) == (PINNED,)


def test_a_linked_node_is_neither_dialled_nor_forgotten() -> None:
    membership = OWN.hear(beacon(), 0.0).linked(OTHER, 0.0)
    membership, due = membership.due(10 * FORGET_AFTER_S)
    assert due == ()
    assert JOIN in membership.candidates


def test_a_node_that_linked_to_us_is_not_dialled_when_it_is_heard() -> None:
    assert dials(OWN.linked(OTHER, 0.0).hear(beacon(), 1.0), 1.0) == ()


def test_a_lost_link_is_dialled_again_at_once_and_backs_off_from_the_start() -> None:
    membership = OWN.hear(beacon(), 0.0)
    for now in range(20):
        membership, _ = membership.due(float(now))
    membership = membership.linked(OTHER, 20.0).unlinked(OTHER, 30.0)
    membership, due = membership.due(30.0)
    assert due == (JOIN,)
    assert dials(membership, 30.4) == ()
    assert dials(membership, 30.5) == (JOIN,)


def test_a_link_that_never_stands_for_long_is_dialled_ever_less_often() -> None:
    membership, when = OWN.hear(beacon(), 0.0), []
    for now in (tenth / 10 for tenth in range(600)):
        membership, due = membership.hear(beacon(), now).due(now)
        if due:
            when.append(now)
            membership = membership.linked(OTHER, now).unlinked(OTHER, now + STEADY_S - 0.1)
    assert len(when) < 10


def test_losing_one_node_leaves_the_others_linked() -> None:
    membership = OWN.hear(beacon(), 0.0).hear(beacon(2, ELSEWHERE), 0.0)
    membership = membership.linked(OTHER, 0.0).linked(node_id(2), 0.0).unlinked(node_id(2), STEADY_S)
    assert dials(membership, STEADY_S) == (ELSEWHERE,)
    assert membership.unlinked("stranger", 9.0) is membership


def test_only_the_links_that_our_hub_still_has_stand() -> None:
    membership = OWN.hear(beacon(), 0.0).hear(beacon(2, ELSEWHERE), 0.0).linked(OTHER, 0.0)
    assert dials(membership.standing([node_id(2)], 20.0), 20.0) == (JOIN,)
    assert dials(membership.standing([OTHER, node_id(2)], 20.0), 20.0) == ()
    assert membership.standing([OTHER], 20.0) is membership


# -- a node at several addresses


def test_a_node_that_moved_is_dialled_where_it_is_now_and_its_back_off_holds() -> None:
    membership, _ = OWN.hear(beacon(), 0.0).due(0.0)
    membership = membership.hear(beacon(1, ELSEWHERE), 0.1)
    assert set(membership.candidates) == {ELSEWHERE}
    assert dials(membership, 0.4) == ()
    assert dials(membership, 0.5) == (ELSEWHERE,)


def test_a_new_life_of_a_node_is_dialled_soon() -> None:
    membership = OWN.hear(beacon(), 0.0)
    for now in range(20):
        membership, _ = membership.due(float(now))
    membership = membership.turned_away(JOIN, FailureCode.REVOKED, 20.0).hear(beacon(incarnation=2), 20.0)
    assert dials(membership, 20.5) == (JOIN,)


def test_ever_new_lives_are_dialled_no_oftener_than_twice_a_second() -> None:
    membership, count = OWN, 0
    for number in range(1000):
        membership, due = membership.hear(beacon(number % 3 + 1, incarnation=number), number / 100).due(number / 100)
        count += len(due)
    assert count <= 21


def test_one_dial_a_node_at_a_time() -> None:
    membership = OWN.pin(PINNED).hear(beacon(), 0.0).met(PINNED, OTHER, "node-1", 0.0)
    membership, first = membership.due(0.0)
    assert len(first) == 1
    assert dials(membership, 0.4) == ()
    membership, second = membership.due(0.5)
    assert {*first, *second} == {JOIN, PINNED}


def test_a_pinned_address_of_a_linked_node_is_not_dialled_until_the_link_is_gone() -> None:
    membership = OWN.pin(PINNED).linked(OTHER, 0.0).met(PINNED, OTHER, "node-1", 0.0)
    assert dials(membership, 100.0) == ()
    assert dials(membership.unlinked(OTHER, 100.0), 100.0) == (PINNED,)


def test_the_beacon_of_a_pinned_node_leaves_it_pinned() -> None:
    held = OWN.pin(JOIN).hear(beacon(), 3.0).candidates[JOIN]
    assert (held.pinned, held.node_id, held.name) == (True, OTHER, "node-1")


# -- what join ports answer


@pytest.mark.parametrize(
    "code", [FailureCode.WRONG_CODE, FailureCode.REVOKED, FailureCode.UNAPPROVED, FailureCode.DUPLICATE]
)
def test_who_turned_us_away_is_left_alone_for_a_while(code: FailureCode) -> None:
    membership, _ = OWN.pin(JOIN).hear(beacon(), 0.0).due(0.0)
    membership = membership.turned_away(JOIN, code, 0.2).hear(beacon(counter=2), 1.0)
    assert dials(membership, REFUSED_S) == ()
    assert dials(membership, REFUSED_S + 0.2) == (JOIN,)


def test_a_pinned_gate_that_turns_us_away_is_knocked_at_twice_a_minute() -> None:
    membership, count = OWN.pin(JOIN), 0
    for now in (tenth / 10 for tenth in range(1200)):
        membership, due = membership.due(now)
        if due:
            count += 1
            membership = membership.turned_away(JOIN, FailureCode.WRONG_CODE, now)
    assert count == 4


def test_who_was_only_silent_is_dialled_with_the_usual_back_off() -> None:
    membership, _ = OWN.pin(JOIN).due(0.0)
    assert dials(membership.turned_away(JOIN, FailureCode.SILENT, 0.2), 0.5) == (JOIN,)


def test_a_gate_that_is_our_own_is_left_alone_for_long() -> None:
    membership = OWN.pin(JOIN).met(JOIN, node_id(0), "own", 1.0)
    assert dials(membership, OURSELVES_S) == ()
    assert dials(membership, 1.0 + OURSELVES_S) == (JOIN,)


def test_what_strange_gates_answer_changes_nothing() -> None:
    assert OWN.met(JOIN, OTHER, "node-1", 0.0) is OWN
    assert OWN.turned_away(JOIN, FailureCode.REVOKED, 0.0) is OWN
    assert OWN.turned_away("", FailureCode.REVOKED, 0.0) is OWN


# -- good-byes


def test_a_goodbye_is_believed_of_the_node_itself_only() -> None:
    membership = OWN.hear(beacon(), 0.0)
    assert not membership.hear(beacon(leaving=True), 1.0).candidates
    assert membership.hear(beacon(2, leaving=True), 1.0).candidates


def test_a_goodbye_does_not_unpin() -> None:
    membership = OWN.pin(JOIN).hear(beacon(), 0.0).hear(beacon(leaving=True), 1.0)
    assert membership.candidates[JOIN].pinned


def test_a_goodbye_ends_no_link() -> None:
    assert OWN.hear(beacon(), 0.0).linked(OTHER, 0.0).hear(beacon(leaving=True), 1.0).links
