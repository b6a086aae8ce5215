"""`ring.ring_view`: an instance as one of its stages sees it."""

from __future__ import annotations

import pytest

from bus.net.endpoints import with_key
from bus.net.keys import new_key_pair
from cluster.placement import Instance, PlacedStage
from cluster.shard import Shard
from ring.ring_view import ring_view

PAIRS = [new_key_pair() for _ in range(3)]
ENDPOINTS = [with_key(f"tcp://10.0.0.{index}:1", pair.public) for index, pair in enumerate(PAIRS)]


def instance(exact_rows: tuple[int, ...] = (5, 1, 64), saves: tuple[bool, ...] = (True, True, True)) -> Instance:
    stages = [
        PlacedStage(
            pair.node_id,
            Shard("m", at, at + 1, 3),
            f"n/{at}",
            "numpy",
            (ENDPOINTS[at],),
            100 - at,
            exact_rows[at],
            saves[at],
        )
        for at, pair in enumerate(PAIRS)
    ]
    return Instance("i", "m", 1, tuple(stages))


def test_view_has_the_next_and_the_first_stage() -> None:
    views = [ring_view(instance(), f"n/{at}") for at in range(3)]
    assert [view.index for view in views] == [0, 1, 2]
    assert [view.next_endpoint for view in views] == [ENDPOINTS[1], ENDPOINTS[2], ENDPOINTS[0]]
    assert {view.first_endpoint for view in views} == {ENDPOINTS[0]}
    assert {view.nodes for view in views} == {tuple(pair.node_id for pair in PAIRS)}


def test_view_has_the_least_of_all_stages() -> None:
    view = ring_view(instance(), "n/0")
    assert (view.size, view.positions, view.exact_rows) == (3, 98, 1)


def test_ring_saves_and_drafts_only_if_every_stage_can() -> None:
    able, unable = instance((5, 9, 64)), instance((5, 9, 64), saves=(True, False, True))
    assert [(view.saves, view.exact_rows) for view in (ring_view(able, "n/0"), ring_view(unable, "n/0"))] == [
        (True, 5),
        (False, 1),
    ]


def test_actor_outside_the_instance_has_no_view() -> None:
    with pytest.raises(StopIteration):
        ring_view(instance(), "n/9")
