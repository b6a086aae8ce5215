"""`cluster.instances`: what stands, from facts that repeat, get lost and come late."""

from __future__ import annotations

from cluster.instances import MAX_DOWN, Instances
from cluster.placement import Instance, PlacedStage
from cluster.shard import Shard


def instance(name: str, epoch: int = 1, model: str = "m", placer: str = "p", nodes: str = "ab") -> Instance:
    stages = tuple(PlacedStage(node, Shard(model, at, at + 1, len(nodes))) for at, node in enumerate(nodes))
    return Instance(name, model, epoch, stages, placer)


def test_newest_instance_has_the_highest_epoch() -> None:
    instances = Instances()
    for made in (instance("i2", 2), instance("i3", 3), instance("i1", 1)):
        instances.mark_up(made)
    assert instances.newest("m") == instance("i3", 3)
    assert instances.newest("other") is None


def test_older_instances_are_all_but_the_newest() -> None:
    one, other = Instances(), Instances()
    made = [instance("i1", 1), instance("i2", 2), instance("i3", 2)]
    for at in range(3):
        one.mark_up(made[at])
        other.mark_up(made[2 - at])
    assert one.newest("m") == other.newest("m") == instance("i3", 2)
    assert one.older("m") == (made[0], made[1])
    assert one.older("other") == ()


def test_late_fact_does_not_bring_an_instance_back() -> None:
    instances = Instances()
    instances.mark_up(instance("i"))
    instances.mark_down("i")
    instances.mark_up(instance("i"))
    instances.reconcile("p", [instance("i")])
    assert instances.newest("m") is None
    assert instances.get("i") is None


def test_down_fact_before_the_up_fact_counts() -> None:
    instances = Instances()
    instances.mark_down("i")
    instances.mark_up(instance("i"))
    assert instances.get("i") is None


def test_instance_missing_from_its_placers_list_is_down() -> None:
    instances = Instances()
    instances.mark_up(instance("i"))
    instances.mark_up(instance("foreign", model="n", placer="q"))
    instances.reconcile("p", [instance("j", 2)])
    assert instances.get("i") is None
    assert instances.get("foreign") is not None
    assert instances.placed_by("p") == (instance("j", 2),)


def test_placer_lists_only_its_own_instances() -> None:
    instances = Instances()
    instances.reconcile("p", [instance("i", placer="q")])
    assert instances.get("i") is None


def test_instances_are_found_by_node() -> None:
    instances = Instances()
    instances.mark_up(instance("i", nodes="ab"))
    instances.mark_up(instance("j", nodes="bc", model="n"))
    assert [held.instance_id for held in instances.on_node("b")] == ["i", "j"]
    assert [held.instance_id for held in instances.on_node("c")] == ["j"]


def test_next_epoch_is_higher_than_any_seen() -> None:
    instances = Instances()
    assert instances.next_epoch("m") == 1
    instances.mark_up(instance("i", 6))
    instances.mark_down("i")
    assert instances.next_epoch("m") == 7
    instances.mark_down("j")
    instances.mark_up(instance("j", 9))
    assert instances.next_epoch("m") == 10
    assert instances.next_epoch("other") == 1


def test_number_of_remembered_ids_is_bounded() -> None:
    instances = Instances()
    for number in range(MAX_DOWN + 1):
        instances.mark_down(f"i{number}")
    instances.mark_up(instance("i0"))
    instances.mark_up(instance("i1"))
    assert instances.get("i0") is not None
    assert instances.get("i1") is None
