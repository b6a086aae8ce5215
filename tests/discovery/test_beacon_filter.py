"""Which datagrams are heard, with time and sources handed in; no sockets."""

from __future__ import annotations

import os
from itertools import islice

import psutil

from discovery.beacon import Beacon, seal
from discovery.beacon_filter import A_SECOND, MAX_NODES, TELL_EVERY_S, BeaconFilter, WrongJoinCode
from discovery.candidates import Candidates
from tests.support.beacons import KEYS, ROTATED, SOURCE, beacon, datagram, forgeries, node_id

A_MILLION = 1_000_000


def rss() -> int:
    return int(psutil.Process(os.getpid()).memory_info().rss)


def test_a_genuine_beacon_is_heard() -> None:
    reception = BeaconFilter(KEYS)
    assert reception.take(datagram(), SOURCE, 0.0) == beacon()
    assert not reception.dropped


def test_a_beacon_from_elsewhere_than_its_gate_is_counted_as_reflected() -> None:
    reception = BeaconFilter(KEYS)
    assert reception.take(datagram(), "192.0.2.8", 0.0) is None
    assert reception.take(datagram(), "127.0.0.1", 0.0) is None
    assert reception.dropped == {"reflected": 2}
    assert reception.take(datagram(), SOURCE, 0.0) == beacon()  # and the reflection has not made it old


def test_a_replayed_beacon_is_counted() -> None:
    reception = BeaconFilter(KEYS)
    later = datagram(counter=7)
    assert reception.take(later, SOURCE, 0.0)
    assert reception.take(later, SOURCE, 1.0) is None
    assert reception.take(datagram(counter=6), SOURCE, 2.0) is None
    assert reception.take(datagram(2), SOURCE, 3.0) == beacon(2)
    assert reception.dropped == {"replayed": 2}


def test_a_new_life_counts_from_the_start_and_makes_the_old_one_old() -> None:
    reception = BeaconFilter(KEYS)
    assert reception.take(datagram(counter=7, incarnation=1), SOURCE, 0.0)
    assert reception.take(datagram(counter=1, incarnation=2), SOURCE, 1.0)
    assert reception.take(datagram(counter=8, incarnation=1), SOURCE, 2.0) is None
    assert reception.dropped == {"replayed": 1}


def test_a_replayed_goodbye_drops_nobody() -> None:
    reception, membership = BeaconFilter(KEYS), Candidates("own")
    goodbye = datagram(counter=1, leaving=True)
    for data in (goodbye, datagram(counter=2), goodbye):
        if isinstance(heard := reception.take(data, SOURCE, 0.0), Beacon):
            membership = membership.hear(heard, 0.0)
    assert membership.candidates


def test_a_source_is_heard_twenty_times_a_second_and_no_more() -> None:
    reception = BeaconFilter(KEYS)
    heard = [reception.take(datagram(n), SOURCE, 0.0) for n in range(100)]
    assert len([h for h in heard if h]) == A_SECOND
    assert reception.dropped == {"too many": 80}


def test_forgeries_and_replays_use_up_nothing_of_what_a_node_may_send() -> None:
    reception = BeaconFilter(KEYS)
    for data in islice(forgeries(5000), 5000):
        reception.take(data, SOURCE, 0.0)
    assert reception.take(datagram(counter=2), SOURCE, 0.0) == beacon(counter=2)


def test_nodes_are_remembered_up_to_a_number() -> None:
    reception = BeaconFilter(KEYS)
    for number in range(MAX_NODES + 1):
        assert reception.take(datagram(number), SOURCE, float(number))
    assert reception.take(datagram(MAX_NODES), SOURCE, 1e6) is None
    assert reception.take(datagram(0), SOURCE, 1e6) == beacon(0)


def test_under_a_new_code_the_old_ones_beacons_are_none() -> None:
    reception = BeaconFilter(KEYS)
    reception.use(ROTATED)
    assert reception.take(datagram(), SOURCE, 0.0) is None
    assert reception.take(datagram(keys=ROTATED), SOURCE, 0.0) == beacon()
    assert reception.dropped == {"wrong code": 1}


# -- wrong join codes


def told(reception: BeaconFilter, seconds: list[float], source: str = SOURCE) -> list[float]:
    wrong = datagram(keys=ROTATED)
    return [now for now in seconds if isinstance(reception.take(wrong, source, now), WrongJoinCode)]


def test_a_wrong_join_code_is_told_once_a_minute() -> None:
    reception = BeaconFilter(KEYS)
    assert told(reception, [float(second) for second in range(130)]) == [
        2.0,
        2.0 + TELL_EVERY_S,
        2.0 + 2 * TELL_EVERY_S,
    ]
    assert reception.dropped == {"wrong code": 130}


def test_many_sources_with_a_wrong_code_are_told_no_oftener() -> None:
    reception = BeaconFilter(KEYS)
    assert sum(bool(told(reception, [n / 100], f"192.0.2.{n % 256}")) for n in range(5000)) == 1


def test_both_sides_of_a_rotation_that_takes_a_moment_say_nothing() -> None:
    assert told(BeaconFilter(KEYS), [0.0, 1.0, 20.0, 21.0]) == []


def test_it_is_told_who_and_what_to_do() -> None:
    reception = BeaconFilter(KEYS)
    reception.take(datagram(keys=ROTATED), SOURCE, 0.0)
    said = reception.take(datagram(keys=ROTATED), SOURCE, 2.0)
    assert said == WrongJoinCode("home", SOURCE)
    assert said.sentence.startswith(f"wrong join code for cluster home: this node and one at {SOURCE} have different")
    assert "`exobus cluster invite`" in said.sentence


# -- floods


def test_a_million_forged_beacons_cause_no_dial_and_take_no_memory() -> None:
    reception, membership = BeaconFilter(KEYS), Candidates("own")
    reception.take(datagram(), SOURCE, 0.0)
    datagrams = forgeries(A_MILLION)
    for data in islice(datagrams, 10_000):
        reception.take(data, SOURCE, 0.0)
    before = rss()
    for number, data in enumerate(datagrams):
        heard = reception.take(data, SOURCE if number % 2 else f"10.{number >> 16 & 255}.{number >> 8 & 255}.9", 0.0)
        assert not isinstance(heard, Beacon)
    assert rss() - before < 4 << 20
    assert membership.due(0.0)[1] == ()
    assert sum(reception.dropped.values()) == A_MILLION
    assert reception.take(datagram(counter=2), SOURCE, 0.0) == beacon(counter=2)


def test_a_holder_of_the_code_who_floods_is_bounded() -> None:
    reception, membership = BeaconFilter(KEYS), Candidates("own")
    for number in range(20_000):
        host = f"10.0.{number >> 8 & 255}.{number & 255}"
        said = Beacon(node_id(number), "liar", 1, 1, f"tcp://{host}:1")
        if isinstance(heard := reception.take(seal(said, KEYS), host, number / 5000), Beacon):
            membership = membership.hear(heard, number / 5000)
    assert len(membership.candidates) == 256
    assert reception.dropped["too many"] > 15_000
