"""`cluster.room`: which idle instances end for a model, whatever is loaded and however it is used."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.capabilities import DeviceCapabilities
from cluster.placement import Instance, PlacedStage
from cluster.room import Fits, InstanceUse, LoadedInstance, StageUse, can_grow, freed, to_end, use_of
from cluster.shard import Shard
from cluster.topology import NodeRecord, Topology

NODES = "abc"
sizes = st.integers(0, 12)


def topology(memory: Mapping[str, int], stages_left: int = 8) -> Topology:
    graph = Topology()
    for node, available in memory.items():
        capabilities = DeviceCapabilities(memory_available=available, stages_left=stages_left)
        graph = graph.with_node(NodeRecord(node, node, 1, 1, capabilities))
    return graph


def loaded(name: str, idle_s: int, **frees: int) -> LoadedInstance:
    """Return an instance with a stage on each of the nodes, the end of which frees so much there."""
    stages = tuple(PlacedStage(node, Shard(name, at, at + 1, len(frees))) for at, node in enumerate(frees))
    return LoadedInstance(Instance(name, name, 1, stages), InstanceUse(idle_s, tuple(frees.values())))


def with_free(**need: int) -> Fits:
    """Return whether each of the nodes offers as much as a model needs there, and one stage more."""

    def fits(graph: Topology) -> bool:
        offers = {node.node_id: node.capabilities for node in graph.nodes}
        return all(offers[node].memory_available >= count and offers[node].stages_left for node, count in need.items())

    return fits


@st.composite
def many_loaded(draw: st.DrawFn) -> list[LoadedInstance]:
    frees = st.dictionaries(st.sampled_from(NODES), sizes, min_size=1)
    return [loaded(f"i{number}", draw(st.integers(0, 3)), **draw(frees)) for number in range(draw(st.integers(0, 5)))]


memories = st.fixed_dictionaries({node: sizes for node in NODES})


@given(memories, st.integers(0, 2), many_loaded(), st.fixed_dictionaries({node: st.integers(0, 30) for node in NODES}))
def test_as_few_idle_instances_end_as_a_model_needs(
    memory: dict[str, int], stages_left: int, instances: list[LoadedInstance], need: dict[str, int]
) -> None:
    graph, fits = topology(memory, stages_left), with_free(**need)
    idle = [one for one in instances if one.use.idle_s]
    ended = to_end(graph, instances, fits)
    if ended is None:
        assert not fits(freed(graph, idle))
        return
    assert set(ended) <= set(idle)
    assert fits(freed(graph, ended))
    assert not any(fits(freed(graph, [one for one in ended if one != spared])) for spared in ended)


@given(memories, many_loaded(), st.data())
def test_order_of_what_is_loaded_changes_nothing(
    memory: dict[str, int], instances: list[LoadedInstance], data: st.DataObject
) -> None:
    graph, fits = topology(memory), with_free(a=10, b=10)
    assert to_end(graph, data.draw(st.permutations(instances)), fits) == to_end(graph, instances, fits)


def test_nothing_ends_for_a_model_that_fits() -> None:
    assert to_end(topology({"a": 5}), [loaded("old", 99, a=5)], with_free(a=5)) == ()


def test_least_recently_used_instance_ends_first() -> None:
    instances = [loaded("new", 1, a=5), loaded("old", 99, a=5), loaded("used", 0, a=5)]
    assert to_end(topology({"a": 0}), instances, with_free(a=5)) == (instances[1],)


def test_old_instance_that_frees_too_little_stays() -> None:
    instances = [loaded("old", 99, a=1, b=9), loaded("new", 1, a=5)]
    assert to_end(topology({"a": 0, "b": 0}), instances, with_free(a=5)) == (instances[1],)


def test_instance_in_use_never_ends() -> None:
    assert to_end(topology({"a": 0}), [loaded("used", 0, a=50)], with_free(a=5)) is None


def test_node_with_all_its_stages_gets_one_free() -> None:
    instances = [loaded("one", 5, a=0), loaded("other", 6, a=0)]
    assert to_end(topology({"a": 9}, stages_left=0), instances, with_free(a=5)) == (instances[1],)


def test_instance_is_idle_if_all_its_stages_are() -> None:
    stages = [StageUse("i", 9, 100), StageUse("i", 7, 50)]
    assert use_of(stages) == InstanceUse(7, (100, 50))
    assert use_of([*stages, None]) == InstanceUse(0, (100, 50, 0))  # it joined just now
    assert use_of([StageUse("i", 0, 100), StageUse("i", 7, 50)]).idle_s == 0


@pytest.mark.parametrize(("frees", "grows"), [(5, True), (4, False), (0, True)])
def test_instance_grows_if_its_end_makes_room(frees: int, grows: bool) -> None:
    def stages_on(graph: Topology) -> int:
        return 2 if with_free(a=10, b=10)(graph) else 1

    held = loaded("one", 1, a=frees)
    assert can_grow(topology({"a": 5, "b": 10}), held, stages_on) == grows
