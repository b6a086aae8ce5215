"""`cluster.held_stages`: which stages a node ends by itself, and when."""

from __future__ import annotations

from cluster.held_stages import GRACE_S, HeldStage, StageReview
from cluster.instances import Instances
from cluster.topology import RecordNumber as Number
from tests.cluster.test_instances import instance, view

JOINED = HeldStage("i", "p", Number(1, 3), instance("i", nodes="va"))
LOADING = HeldStage("i", "p", Number(1, 3))


def test_stage_of_a_standing_instance_stays() -> None:
    instances = view(instance("i", nodes="va"), linked="vap")
    assert StageReview().to_end([JOINED], instances, 0.0) == []


def test_stage_of_broken_ring_ends_after_grace() -> None:
    instances, review = view(linked="vap"), StageReview()
    assert review.to_end([JOINED], instances, 100.0) == []
    assert review.to_end([JOINED], instances, 100.0 + GRACE_S - 0.1) == []
    assert review.to_end([JOINED], instances, 100.0 + GRACE_S) == [JOINED]


def test_doubt_begins_anew_after_good_news() -> None:
    instances, review = view(linked="vap"), StageReview()
    review.to_end([JOINED], instances, 0.0)
    for node in "va":
        instances.record(node, Number(1, 6), [instance("i", nodes="va")])
    assert review.to_end([JOINED], instances, 3.0) == []
    instances.record("a", Number(1, 7), [])
    assert review.to_end([JOINED], instances, 5.0) == []
    assert review.to_end([JOINED], instances, 5.0 + GRACE_S) == [JOINED]


def test_loading_stage_stays_while_it_is_being_placed() -> None:
    instances, review = view(), StageReview()
    instances.record("p", Number(1, 6), [], ["i"])
    assert review.to_end([LOADING], instances, 0.0) == review.to_end([LOADING], instances, 9999.0) == []


def test_loading_stage_ends_if_its_placer_gave_up() -> None:
    instances, review = view(), StageReview()
    assert review.to_end([LOADING], instances, 0.0) == []
    assert review.to_end([LOADING], instances, GRACE_S) == [LOADING]


def test_loading_stage_ends_if_its_placer_is_gone() -> None:
    review = StageReview()
    assert review.to_end([LOADING], Instances("v"), 0.0) == []
    assert review.to_end([LOADING], Instances("v"), GRACE_S) == [LOADING]
