"""`discovery.candidates`: beacons and link events in, join ports to dial out, with the time passed in."""

from __future__ import annotations

from itertools import pairwise

import pytest

from cluster.failures import FailureCode
from discovery.candidates import (
    FORGET_AFTER_S,
    MAX_BACK_OFF_S,
    MAX_CANDIDATES,
    OURSELVES_S,
    REFUSED_S,
    STEADY_S,
    Candidates,
)
from tests.support.network.beacons import JOIN, beacon, node_id

OWN = Candidates(node_id(0))
OTHER = node_id(1)
ELSEWHERE = "tcp://192.0.2.8:1"
PINNED = "tcp://kitchen.local:52414"


def dials(candidates: Candidates, now: float) -> tuple[str, ...]:
    return candidates.due(now)[1]


def dialled(candidates: Candidates, seconds: int) -> list[float]:
    """Return the times of all dials, polling ten times a second."""
    when = []
    for now in (tenth / 10 for tenth in range(10 * seconds)):
        candidates, due = candidates.due(now)
        when += [now] * len(due)
    return when


def test_new_node_is_dialled_at_once() -> None:
    assert dials(OWN.beacon_received(beacon(), 5.0), 5.0) == (JOIN,)


def test_own_beacon_is_ignored() -> None:
    assert OWN.beacon_received(beacon(0), 0.0) is OWN


def test_number_of_candidates_is_bounded() -> None:
    candidates = OWN
    for port in range(1, MAX_CANDIDATES + 51):
        candidates = candidates.beacon_received(beacon(port, f"tcp://192.0.2.7:{port}"), 0.0)
    assert len(candidates.candidates) == MAX_CANDIDATES
    assert candidates.dropped == {"too many candidates": 50}
    known = candidates.beacon_received(beacon(1, "tcp://192.0.2.7:1"), 1.0).beacon_received(
        beacon(2, "tcp://192.0.2.7:9999"), 1.0
    )
    assert known.dropped == candidates.dropped
    assert len(known.candidates) == MAX_CANDIDATES


def test_candidates_without_beacons_are_forgotten() -> None:
    candidates = OWN
    for port in range(1, MAX_CANDIDATES + 1):
        candidates = candidates.beacon_received(beacon(port, f"tcp://192.0.2.7:{port}"), 0.0)
    candidates, _ = candidates.due(FORGET_AFTER_S)
    assert not candidates.candidates


def test_back_off_doubles_up_to_a_limit() -> None:
    pauses = [later - sooner for sooner, later in pairwise(dialled(OWN.pin(PINNED), 90))]
    assert pauses[:5] == pytest.approx([0.5, 1.0, 2.0, 4.0, 8.0], abs=0.11)
    assert pauses[5:] == pytest.approx([MAX_BACK_OFF_S] * len(pauses[5:]), abs=0.11)
    assert len(pauses) > 8


def test_pinned_peer_is_dialled_for_ever() -> None:
    candidates = OWN.beacon_received(beacon(), 0.0).pin(PINNED)
    candidates, _ = candidates.due(FORGET_AFTER_S)
    assert set(candidates.candidates) == {PINNED}
    assert dials(candidates, 1e6) == (PINNED,)


def test_linked_node_is_neither_dialled_nor_forgotten() -> None:
    candidates = OWN.beacon_received(beacon(), 0.0).linked(OTHER, 0.0)
    candidates, due = candidates.due(10 * FORGET_AFTER_S)
    assert due == ()
    assert JOIN in candidates.candidates


def test_beacon_of_a_linked_node_causes_no_dial() -> None:
    assert dials(OWN.linked(OTHER, 0.0).beacon_received(beacon(), 1.0), 1.0) == ()


def test_lost_link_starts_a_new_back_off() -> None:
    candidates = OWN.beacon_received(beacon(), 0.0)
    for now in range(20):
        candidates, _ = candidates.due(float(now))
    candidates = candidates.linked(OTHER, 20.0).unlinked(OTHER, 30.0)
    candidates, due = candidates.due(30.0)
    assert due == (JOIN,)
    assert dials(candidates, 30.4) == ()
    assert dials(candidates, 30.5) == (JOIN,)


def test_unstable_link_is_dialled_ever_less_often() -> None:
    candidates, when = OWN.beacon_received(beacon(), 0.0), []
    for now in (tenth / 10 for tenth in range(600)):
        candidates, due = candidates.beacon_received(beacon(), now).due(now)
        if due:
            when.append(now)
            candidates = candidates.linked(OTHER, now).unlinked(OTHER, now + STEADY_S - 0.1)
    assert len(when) < 10


def test_losing_one_link_leaves_the_others() -> None:
    candidates = OWN.beacon_received(beacon(), 0.0).beacon_received(beacon(2, ELSEWHERE), 0.0)
    candidates = candidates.linked(OTHER, 0.0).linked(node_id(2), 0.0).unlinked(node_id(2), STEADY_S)
    assert dials(candidates, STEADY_S) == (ELSEWHERE,)
    assert candidates.unlinked("unknown", 9.0) is candidates


# -- a node at several endpoints


def test_moved_node_keeps_its_back_off() -> None:
    candidates, _ = OWN.beacon_received(beacon(), 0.0).due(0.0)
    candidates = candidates.beacon_received(beacon(1, ELSEWHERE), 0.1)
    assert set(candidates.candidates) == {ELSEWHERE}
    assert dials(candidates, 0.4) == ()
    assert dials(candidates, 0.5) == (ELSEWHERE,)


def test_new_incarnation_is_dialled_soon() -> None:
    candidates = OWN.beacon_received(beacon(), 0.0)
    for now in range(20):
        candidates, _ = candidates.due(float(now))
    candidates = candidates.refused(JOIN, FailureCode.REVOKED, 20.0).beacon_received(beacon(incarnation=2), 20.0)
    assert dials(candidates, 20.5) == (JOIN,)


def test_new_incarnations_are_dialled_twice_a_second() -> None:
    candidates, count = OWN, 0
    for number in range(1000):
        candidates, due = candidates.beacon_received(beacon(number % 3 + 1, incarnation=number), number / 100).due(
            number / 100
        )
        count += len(due)
    assert count <= 21


def test_two_ports_are_never_dialled_together() -> None:
    candidates = OWN.pin(PINNED).beacon_received(beacon(), 0.0).identified(PINNED, OTHER, "node-1", 0.0)
    candidates, first = candidates.due(0.0)
    assert len(first) == 1
    assert dials(candidates, 0.4) == ()
    candidates, second = candidates.due(0.5)
    assert {*first, *second} == {JOIN, PINNED}


def test_pinned_port_waits_for_its_nodes_link() -> None:
    candidates = OWN.pin(PINNED).linked(OTHER, 0.0).identified(PINNED, OTHER, "node-1", 0.0)
    assert dials(candidates, 100.0) == ()
    assert dials(candidates.unlinked(OTHER, 100.0), 100.0) == (PINNED,)


def test_beacon_of_a_pinned_node_leaves_it_pinned() -> None:
    held = OWN.pin(JOIN).beacon_received(beacon(), 3.0).candidates[JOIN]
    assert (held.pinned, held.node_id, held.name) == (True, OTHER, "node-1")


# -- replies of join ports


@pytest.mark.parametrize(
    "code", [FailureCode.WRONG_CODE, FailureCode.REVOKED, FailureCode.UNAPPROVED, FailureCode.DUPLICATE]
)
def test_lasting_refusal_delays_the_next_dial(code: FailureCode) -> None:
    candidates, _ = OWN.pin(JOIN).beacon_received(beacon(), 0.0).due(0.0)
    candidates = candidates.refused(JOIN, code, 0.2).beacon_received(beacon(counter=2), 1.0)
    assert dials(candidates, REFUSED_S) == ()
    assert dials(candidates, REFUSED_S + 0.2) == (JOIN,)


def test_refusing_pinned_port_is_dialled_twice_a_minute() -> None:
    candidates, count = OWN.pin(JOIN), 0
    for now in (tenth / 10 for tenth in range(1200)):
        candidates, due = candidates.due(now)
        if due:
            count += 1
            candidates = candidates.refused(JOIN, FailureCode.WRONG_CODE, now)
    assert count == 4


def test_silent_port_has_the_usual_back_off() -> None:
    candidates, _ = OWN.pin(JOIN).due(0.0)
    assert dials(candidates.refused(JOIN, FailureCode.SILENT, 0.2), 0.5) == (JOIN,)


def test_own_join_port_waits_an_hour() -> None:
    candidates = OWN.pin(JOIN).identified(JOIN, node_id(0), "own", 1.0)
    assert dials(candidates, OURSELVES_S) == ()
    assert dials(candidates, 1.0 + OURSELVES_S) == (JOIN,)


def test_replies_of_unknown_ports_are_ignored() -> None:
    assert OWN.identified(JOIN, OTHER, "node-1", 0.0) is OWN
    assert OWN.refused(JOIN, FailureCode.REVOKED, 0.0) is OWN
    assert OWN.refused("", FailureCode.REVOKED, 0.0) is OWN


# -- leaving beacons


def test_leaving_beacon_of_another_node_is_ignored() -> None:
    candidates = OWN.beacon_received(beacon(), 0.0)
    assert not candidates.beacon_received(beacon(leaving=True), 1.0).candidates
    assert candidates.beacon_received(beacon(2, leaving=True), 1.0).candidates


def test_leaving_beacon_does_not_unpin() -> None:
    candidates = OWN.pin(JOIN).beacon_received(beacon(), 0.0).beacon_received(beacon(leaving=True), 1.0)
    assert candidates.candidates[JOIN].pinned


def test_leaving_beacon_ends_no_link() -> None:
    assert OWN.beacon_received(beacon(), 0.0).linked(OTHER, 0.0).beacon_received(beacon(leaving=True), 1.0).links
