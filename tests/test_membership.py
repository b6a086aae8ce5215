"""Who is dialled: beacons in, end points out, with time handed in."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import msgspec
import pytest

from cluster.membership import FORGET_AFTER_S, LONGEST_BACK_OFF_S, MAX_CANDIDATES, Beacon, Membership

OWN = Membership("own", "home", 1)
THERE = "tcp://10.0.0.2:52414"


def beacon(node_id: str = "other", endpoint: str = THERE, **changes: object) -> Beacon:
    return msgspec.structs.replace(Beacon("home", 1, node_id, node_id, 7, endpoint), **changes)


def dials(membership: Membership, now: float) -> tuple[str, ...]:
    return membership.due(now)[1]


def test_who_is_heard_is_dialled_at_once() -> None:
    assert dials(OWN.hear(beacon(), 5.0), 5.0) == (THERE,)


def test_our_own_beacon_is_ignored() -> None:
    assert OWN.hear(beacon("own"), 0.0) is OWN


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"cluster": "work"}, "another cluster"),
        ({"version": 2}, "another protocol version"),
        ({"endpoint": "ipc:///etc/shadow"}, "no end point"),
        ({"endpoint": ""}, "no end point"),
    ],
)
def test_a_foreign_beacon_is_counted_and_never_dialled(changes: dict[str, Any], reason: str) -> None:
    membership = OWN.hear(beacon(**changes), 0.0).hear(beacon(**changes), 1.0)
    assert membership.refused == {reason: 2}
    assert dials(membership, 100.0) == ()


def test_a_flood_of_beacons_is_bounded() -> None:
    membership = OWN
    for port in range(1, MAX_CANDIDATES + 51):
        membership = membership.hear(beacon(f"n{port}", f"tcp://10.0.0.2:{port}"), 0.0)
    assert len(membership.candidates) == MAX_CANDIDATES
    assert membership.refused == {"too many candidates": 50}
    known = membership.hear(beacon("n1", "tcp://10.0.0.2:1"), 1.0)
    assert known.refused == membership.refused


def test_a_flood_is_forgotten_again() -> None:
    membership = OWN
    for port in range(1, MAX_CANDIDATES + 1):
        membership = membership.hear(beacon(f"n{port}", f"tcp://10.0.0.2:{port}"), 0.0)
    membership, _ = membership.due(FORGET_AFTER_S)
    assert not membership.candidates


def test_dials_back_off_twofold_up_to_a_limit() -> None:
    membership, when = OWN.pin(THERE), []
    for now in (tenth / 10 for tenth in range(900)):
        membership, due = membership.due(now)
        when += [now] * len(due)
    pauses = [later - sooner for sooner, later in pairwise(when)]
    assert pauses[:5] == pytest.approx([0.5, 1.0, 2.0, 4.0, 8.0], abs=0.11)
    assert pauses[5:] == pytest.approx([LONGEST_BACK_OFF_S] * len(pauses[5:]), abs=0.11)
    assert len(pauses) > 8


def test_a_silent_node_is_forgotten_and_a_pinned_one_is_dialled_for_ever() -> None:
    membership = OWN.hear(beacon(), 0.0).pin("tcp://pinned:1")
    membership, _ = membership.due(FORGET_AFTER_S)
    assert set(membership.candidates) == {"tcp://pinned:1"}
    assert dials(membership, 1e6) == ("tcp://pinned:1",)


def test_a_linked_node_is_neither_dialled_nor_forgotten() -> None:
    membership = OWN.hear(beacon(), 0.0).linked(THERE, "other")
    membership, due = membership.due(10 * FORGET_AFTER_S)
    assert due == ()
    assert THERE in membership.candidates


def test_a_lost_link_is_dialled_again_at_once_and_backs_off_from_the_start() -> None:
    membership = OWN.hear(beacon(), 0.0)
    for now in range(20):
        membership, _ = membership.due(float(now))
    membership = membership.linked(THERE, "other").unlinked("other", 30.0)
    membership, due = membership.due(30.0)
    assert due == (THERE,)
    assert dials(membership, 30.4) == ()
    assert dials(membership, 30.5) == (THERE,)


def test_losing_one_node_leaves_the_others_linked() -> None:
    other = "tcp://10.0.0.3:1"
    membership = OWN.hear(beacon(), 0.0).hear(beacon("third", other), 0.0)
    membership = membership.linked(THERE, "other").linked(other, "third").unlinked("third", 1.0)
    assert dials(membership, 1.0) == (other,)


def test_a_second_address_of_a_linked_node_is_not_dialled() -> None:
    membership = OWN.hear(beacon(), 0.0).linked(THERE, "other").hear(beacon(endpoint="tcp://192.168.0.2:1"), 1.0)
    assert dials(membership, 1.0) == ()
    assert "tcp://192.168.0.2:1" in dials(membership.unlinked("other", 2.0), 2.0)


def test_when_our_hub_began_anew_every_link_is_dialled_again() -> None:
    membership = OWN.pin("tcp://pinned:1").linked("tcp://pinned:1", "p").hear(beacon(), 0.0).linked(THERE, "other")
    assert set(dials(membership.unlinked_all(50.0), 50.0)) == {THERE, "tcp://pinned:1"}


def test_a_goodbye_is_believed_of_the_node_itself_only() -> None:
    membership = OWN.hear(beacon(), 0.0)
    assert not membership.hear(beacon(leaving=True), 1.0).candidates
    assert membership.hear(beacon("liar", leaving=True), 1.0).candidates


def test_a_goodbye_does_not_unpin() -> None:
    membership = OWN.pin(THERE).hear(beacon(), 0.0).hear(beacon(leaving=True), 1.0)
    assert membership.candidates[THERE].pinned


def test_a_pinned_peer_is_named_by_its_beacon() -> None:
    held = OWN.pin(THERE).hear(beacon(), 3.0).candidates[THERE]
    assert replace(held, heard_at=0.0, dial_at=0.0).pinned
    assert held.node_id == "other"


def test_a_link_to_a_stranger_changes_nothing() -> None:
    assert OWN.linked(THERE, "other") is OWN
