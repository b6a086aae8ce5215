"""`discovery.beacon_filter`: replays, reflections, floods and wrong join codes, with time and source passed in."""

from __future__ import annotations

import os
from itertools import islice

import psutil

from common.limits import MAX_NODES
from discovery.beacon import Beacon, seal
from discovery.beacon_filter import BEACONS_PER_S, REPORT_EVERY_S, BeaconFilter, WrongJoinCode
from discovery.candidates import Candidates
from tests.support.network.beacons import KEYS, ROTATED, SOURCE, beacon, datagram, forgeries, node_id

A_MILLION = 1_000_000


def rss() -> int:
    return int(psutil.Process(os.getpid()).memory_info().rss)


def test_genuine_beacon_is_accepted() -> None:
    beacons = BeaconFilter(KEYS)
    assert beacons.accept(datagram(), SOURCE, 0.0) == beacon()
    assert not beacons.dropped


def test_beacon_from_another_address_is_dropped_as_reflected() -> None:
    beacons = BeaconFilter(KEYS)
    assert beacons.accept(datagram(), "192.0.2.8", 0.0) is None
    assert beacons.accept(datagram(), "127.0.0.1", 0.0) is None
    assert beacons.dropped == {"reflected": 2}
    assert beacons.accept(datagram(), SOURCE, 0.0) == beacon()  # the reflection did not count as the first one


def test_replayed_beacon_is_dropped() -> None:
    beacons = BeaconFilter(KEYS)
    later = datagram(counter=7)
    assert beacons.accept(later, SOURCE, 0.0)
    assert beacons.accept(later, SOURCE, 1.0) is None
    assert beacons.accept(datagram(counter=6), SOURCE, 2.0) is None
    assert beacons.accept(datagram(2), SOURCE, 3.0) == beacon(2)
    assert beacons.dropped == {"replayed": 2}


def test_old_incarnations_beacons_become_replays() -> None:
    beacons = BeaconFilter(KEYS)
    assert beacons.accept(datagram(counter=7, incarnation=1), SOURCE, 0.0)
    assert beacons.accept(datagram(counter=1, incarnation=2), SOURCE, 1.0)
    assert beacons.accept(datagram(counter=8, incarnation=1), SOURCE, 2.0) is None
    assert beacons.dropped == {"replayed": 1}


def test_replayed_leaving_beacon_removes_no_candidate() -> None:
    beacons, candidates = BeaconFilter(KEYS), Candidates("own")
    leaving_beacon = datagram(counter=1, leaving=True)
    for data in (leaving_beacon, datagram(counter=2), leaving_beacon):
        if isinstance(accepted := beacons.accept(data, SOURCE, 0.0), Beacon):
            candidates = candidates.beacon_received(accepted, 0.0)
    assert candidates.candidates


def test_source_is_limited_to_twenty_beacons_a_second() -> None:
    beacons = BeaconFilter(KEYS)
    results = [beacons.accept(datagram(n), SOURCE, 0.0) for n in range(100)]
    assert len([r for r in results if r]) == BEACONS_PER_S
    assert beacons.dropped == {"too many": 80}


def test_forgeries_leave_a_nodes_rate_untouched() -> None:
    beacons = BeaconFilter(KEYS)
    for data in islice(forgeries(5000), 5000):
        beacons.accept(data, SOURCE, 0.0)
    assert beacons.accept(datagram(counter=2), SOURCE, 0.0) == beacon(counter=2)


def test_number_of_remembered_nodes_is_bounded() -> None:
    beacons = BeaconFilter(KEYS)
    for number in range(MAX_NODES + 1):
        assert beacons.accept(datagram(number), SOURCE, float(number))
    assert beacons.accept(datagram(MAX_NODES), SOURCE, 1e6) is None
    assert beacons.accept(datagram(0), SOURCE, 1e6) == beacon(0)


def test_rotation_drops_beacons_of_the_old_code() -> None:
    beacons = BeaconFilter(KEYS)
    beacons.use_keys(ROTATED)
    assert beacons.accept(datagram(), SOURCE, 0.0) is None
    assert beacons.accept(datagram(keys=ROTATED), SOURCE, 0.0) == beacon()
    assert beacons.dropped == {"wrong code": 1}


# -- wrong join codes


def reports(beacons: BeaconFilter, seconds: list[float], source: str = SOURCE) -> list[float]:
    wrong = datagram(keys=ROTATED)
    return [now for now in seconds if isinstance(beacons.accept(wrong, source, now), WrongJoinCode)]


def test_wrong_join_code_is_reported_once_a_minute() -> None:
    beacons = BeaconFilter(KEYS)
    assert reports(beacons, [float(second) for second in range(130)]) == [
        2.0,
        2.0 + REPORT_EVERY_S,
        2.0 + 2 * REPORT_EVERY_S,
    ]
    assert beacons.dropped == {"wrong code": 130}


def test_many_wrong_codes_give_one_report() -> None:
    beacons = BeaconFilter(KEYS)
    assert sum(bool(reports(beacons, [n / 100], f"192.0.2.{n % 256}")) for n in range(5000)) == 1


def test_brief_difference_during_a_rotation_is_not_reported() -> None:
    assert reports(BeaconFilter(KEYS), [0.0, 1.0, 20.0, 21.0]) == []


def test_report_names_the_source_and_the_next_step() -> None:
    beacons = BeaconFilter(KEYS)
    beacons.accept(datagram(keys=ROTATED), SOURCE, 0.0)
    report = beacons.accept(datagram(keys=ROTATED), SOURCE, 2.0)
    assert report == WrongJoinCode("home", SOURCE)
    assert report.sentence.startswith(f"wrong join code for cluster home: this node and one at {SOURCE} have different")
    assert "`exobus cluster invite`" in report.sentence


# -- floods


def test_million_forgeries_cost_no_dial_or_memory() -> None:
    beacons, candidates = BeaconFilter(KEYS), Candidates("own")
    beacons.accept(datagram(), SOURCE, 0.0)
    datagrams = forgeries(A_MILLION)
    for data in islice(datagrams, 10_000):
        beacons.accept(data, SOURCE, 0.0)
    before = rss()
    for number, data in enumerate(datagrams):
        accepted = beacons.accept(data, SOURCE if number % 2 else f"10.{number >> 16 & 255}.{number >> 8 & 255}.9", 0.0)
        assert not isinstance(accepted, Beacon)
    assert rss() - before < 4 << 20
    assert candidates.due(0.0)[1] == ()
    assert sum(beacons.dropped.values()) == A_MILLION
    assert beacons.accept(datagram(counter=2), SOURCE, 0.0) == beacon(counter=2)


def test_flood_by_a_code_holder_is_bounded() -> None:
    beacons, candidates = BeaconFilter(KEYS), Candidates("own")
    for number in range(20_000):
        host = f"10.0.{number >> 8 & 255}.{number & 255}"
        sent = Beacon(node_id(number), "flood", 1, 1, f"tcp://{host}:1")
        if isinstance(accepted := beacons.accept(seal(sent, KEYS), host, number / 5000), Beacon):
            candidates = candidates.beacon_received(accepted, number / 5000)
    assert len(candidates.candidates) == 256
    assert beacons.dropped["too many"] > 15_000
