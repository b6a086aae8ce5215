"""What stands, from facts that repeat, get lost and come late."""

from __future__ import annotations

from cluster.instances import MAX_DOWN, Instances
from cluster.placement import Instance, PlacedStage
from cluster.shard import Shard


def instance(name: str, epoch: int = 1, model: str = "m", placer: str = "p", nodes: str = "ab") -> Instance:
    stages = tuple(PlacedStage(node, Shard(model, at, at + 1, len(nodes))) for at, node in enumerate(nodes))
    return Instance(name, model, epoch, stages, placer)


def test_of_a_model_the_highest_epoch_counts() -> None:
    instances = Instances()
    for made in (instance("i2", 2), instance("i3", 3), instance("i1", 1)):
        instances.mark_up(made)
    assert instances.newest("m") == instance("i3", 3)
    assert instances.newest("other") is None


def test_a_late_fact_does_not_bring_an_instance_back() -> None:
    instances = Instances()
    instances.mark_up(instance("i"))
    instances.mark_down("i")
    instances.mark_up(instance("i"))
    instances.reconcile("p", [instance("i")])
    assert instances.newest("m") is None
    assert instances.with_id("i") is None


def test_an_end_that_comes_before_the_beginning_counts() -> None:
    instances = Instances()
    instances.mark_down("i")
    instances.mark_up(instance("i"))
    assert instances.with_id("i") is None


def test_what_a_placer_no_longer_names_is_down() -> None:
    instances = Instances()
    instances.mark_up(instance("i"))
    instances.mark_up(instance("foreign", model="n", placer="q"))
    instances.reconcile("p", [instance("j", 2)])
    assert instances.with_id("i") is None
    assert instances.with_id("foreign") is not None
    assert instances.placed_by("p") == (instance("j", 2),)


def test_a_placer_speaks_only_for_what_it_placed() -> None:
    instances = Instances()
    instances.reconcile("p", [instance("i", placer="q")])
    assert instances.with_id("i") is None


def test_instances_are_found_by_a_member() -> None:
    instances = Instances()
    instances.mark_up(instance("i", nodes="ab"))
    instances.mark_up(instance("j", nodes="bc", model="n"))
    assert [held.instance_id for held in instances.with_node("b")] == ["i", "j"]
    assert [held.instance_id for held in instances.with_node("c")] == ["j"]


def test_the_next_epoch_is_higher_than_any_heard_of_even_of_the_fallen() -> None:
    instances = Instances()
    assert instances.next_epoch("m") == 1
    instances.mark_up(instance("i", 6))
    instances.mark_down("i")
    assert instances.next_epoch("m") == 7
    instances.mark_down("j")
    instances.mark_up(instance("j", 9))
    assert instances.next_epoch("m") == 10
    assert instances.next_epoch("other") == 1


def test_the_memory_of_the_fallen_is_bounded() -> None:
    instances = Instances()
    for number in range(MAX_DOWN + 1):
        instances.mark_down(f"i{number}")
    instances.mark_up(instance("i0"))
    instances.mark_up(instance("i1"))
    assert instances.with_id("i0") is not None
    assert instances.with_id("i1") is None
