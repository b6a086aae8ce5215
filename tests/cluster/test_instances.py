"""`cluster.instances`: what stands, from records and facts that repeat, get lost and come late."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.instances import MAX_KEPT, Instances
from cluster.placement import Instance, PlacedStage
from cluster.room import InstanceUse, StageUse
from cluster.shard import Shard
from cluster.topology import RecordNumber as Number


def instance(name: str, epoch: int = 1, model: str = "m", nodes: str = "ab") -> Instance:
    stages = tuple(PlacedStage(node, Shard(model, at, at + 1, len(nodes))) for at, node in enumerate(nodes))
    return Instance(name, model, epoch, stages, "p")


def view(*made: Instance, linked: str = "abp") -> Instances:
    """Return the view of node v, which has heard that these instances stand from all nodes in `linked`."""
    instances = Instances("v")
    for node in linked:
        instances.link(node)
        instances.record(node, Number(1, 5), [one for one in made if node in one.node_ids])
    return instances


def ids(instances: Sequence[Instance]) -> list[str]:
    return [held.instance_id for held in instances]


def test_newest_instance_has_the_highest_epoch() -> None:
    instances = view(instance("i2", 2), instance("i3", 3), instance("i1", 1))
    assert instances.newest("m") == instance("i3", 3)
    assert instances.newest("other") is None


def test_use_of_an_instance_is_that_of_its_stages() -> None:
    instances = view(instance("i"))
    instances.record("a", Number(1, 6), [instance("i")], uses=[StageUse("i", 9, 100), StageUse("other", 1)])
    assert instances.loaded() == ((instance("i"), InstanceUse(0, (100, 0))),)
    instances.record("b", Number(1, 6), [instance("i")], uses=[StageUse("i", 7, 50)])
    assert instances.loaded() == ((instance("i"), InstanceUse(7, (100, 50))),)
    instances.unlink("b")
    assert instances.loaded() == ()


def test_all_views_choose_the_same_of_two() -> None:
    made = [instance("i1", 1), instance("i2", 2), instance("i3", 2)]
    one, other = view(*made), view(*reversed(made))
    assert one.newest("m") == other.newest("m") == made[2]
    assert one.older("m") == (made[0], made[1])
    assert one.older("other") == ()


def test_instance_stands_only_if_every_stage_says_so() -> None:
    instances = view(instance("i"))
    instances.record("b", Number(1, 6), [])
    assert instances.get("i") is None
    assert instances.newest("m") is None


def test_two_values_of_one_instance_do_not_stand() -> None:
    instances = view(instance("i", epoch=1))
    instances.record("b", Number(1, 6), [instance("i", epoch=2)])
    assert instances.standing() == ()


def test_node_cannot_list_what_it_has_no_stage_of() -> None:
    instances = view()
    instances.record("p", Number(1, 6), [instance("i")])
    assert instances.standing() == ()


def test_placer_may_leave() -> None:
    instances = view(instance("i"))
    instances.unlink("p")
    assert ids(instances.standing()) == ["i"]


def test_node_that_comes_back_has_to_say_anew() -> None:
    instances = view(instance("i"))
    instances.unlink("a")
    assert instances.standing() == ()
    instances.link("a")
    assert instances.standing() == ()
    assert not instances.heard_all("ab")
    instances.record("a", Number(1, 1), [instance("i")])
    assert ids(instances.standing()) == ["i"]
    assert instances.heard_all("abx"), "a node that is not linked will not be heard"


def test_announced_instance_stands_before_the_records_come() -> None:
    instances = view()
    instances.announce(instance("i"), (Number(1, 6), Number(1, 7)))
    assert ids(instances.standing()) == ["i"]
    instances.record("a", Number(1, 5), [])
    instances.record("b", Number(1, 6), [])
    assert ids(instances.standing()) == ["i"], "these records were made before the stages joined"
    instances.record("b", Number(1, 7), [])
    assert instances.standing() == ()


def test_announcement_does_not_outlive_the_records() -> None:
    instances = view()
    instances.announce(instance("i"), (Number(1, 6), Number(1, 6)))
    for node in "ab":
        instances.record(node, Number(1, 6), [instance("i")])
    instances.record("a", Number(1, 7), [])
    assert instances.standing() == ()


def test_announcement_ends_with_a_link() -> None:
    instances = view()
    instances.announce(instance("i"), (Number(1, 9), Number(1, 9)))
    instances.unlink("b")
    instances.link("b")
    assert instances.standing() == ()


def test_announcement_of_another_length_is_ignored() -> None:
    instances = view()
    instances.announce(instance("i"), (Number(1, 9),))
    assert instances.standing() == ()


def test_late_fact_does_not_bring_an_instance_back() -> None:
    instances = view(instance("i"))
    instances.end("i")
    instances.announce(instance("i"), (Number(1, 9), Number(1, 9)))
    instances.record("a", Number(1, 9), [instance("i")])
    assert instances.standing() == ()


def test_older_record_changes_nothing() -> None:
    instances = view(instance("i"))
    instances.record("a", Number(1, 4), [])
    instances.record("a", Number(0, 9), [])
    assert ids(instances.standing()) == ["i"]


def test_record_of_a_restarted_node_counts() -> None:
    instances = view(instance("i"))
    instances.record("a", Number(2, 1), [])
    assert instances.standing() == ()


def test_next_epoch_is_higher_than_any_seen() -> None:
    instances = view(instance("i", 6))
    assert instances.next_epoch("other") == 1
    instances.end("i")
    assert instances.next_epoch("m") == 7
    instances.announce(instance("j", 8), ())
    assert instances.next_epoch("m") == 9


def test_placement_is_abandoned_once_its_placer_says_so() -> None:
    instances = view()
    assert not instances.is_abandoned("i", "p", Number(1, 6)), "its last record is older than the request"
    instances.record("p", Number(1, 6), [], ["i"])
    assert not instances.is_abandoned("i", "p", Number(1, 6))
    instances.record("p", Number(1, 7), [])
    assert instances.is_abandoned("i", "p", Number(1, 6))


def test_placement_is_abandoned_if_its_placer_is_gone() -> None:
    instances = view()
    instances.unlink("p")
    assert instances.is_abandoned("i", "p", Number(1, 6))


def test_ended_instances_are_remembered_up_to_a_bound() -> None:
    instances = view(instance("i"))
    for number in range(MAX_KEPT):
        instances.end(f"j{number}")
    assert ids(instances.standing()) == ["i"]
    instances.end("i")
    assert instances.standing() == ()
