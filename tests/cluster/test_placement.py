"""`cluster.placement`: which node places a model, what a plan looks like, and what is reported if none fits."""

from __future__ import annotations

from functools import partial

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.capabilities import DeviceCapabilities
from cluster.partitioning import RingMemoryWeightedPartitioningStrategy
from cluster.placement import DoesNotFit, Instance, PlacedStage, able, larger_ring, placer_of, plan
from cluster.shard import Shard, whole
from cluster.topology import NodeRecord, Topology
from models.catalogue import DEFAULT_MODEL, Catalogue
from models.weights.memory import least_bytes

MB = 10**6
STRATEGY = RingMemoryWeightedPartitioningStrategy()
node_sets = st.sets(st.integers(0, 10**6).map(lambda number: f"{number:016x}"), min_size=1, max_size=12)


def topology(**memory_mb: int) -> Topology:
    graph = Topology()
    for name, available in memory_mb.items():
        capabilities = DeviceCapabilities(memory_available=available * MB)
        graph = graph.with_node(NodeRecord(f"id-{name}", name, 1, 1, capabilities))
    return graph


def shard_bytes(shard: Shard, node: DeviceCapabilities | None = None) -> int:
    """Return 10 MB a layer, and 50 MB for the embedding at either end."""
    ends = shard.is_first or shard.is_last
    return (10 * len(shard.layers) + 50 * ends) * MB


@given(st.data(), node_sets, st.text(max_size=20))
def test_every_node_finds_the_same_placer(data: st.DataObject, nodes: set[str], model: str) -> None:
    assert placer_of(model, nodes) == placer_of(model, data.draw(st.permutations(sorted(nodes))))


@given(node_sets, st.text(max_size=20), st.text("0123456789abcdef", min_size=16, max_size=16))
def test_model_changes_its_placer_only_if_necessary(nodes: set[str], model: str, newcomer: str) -> None:
    placer = placer_of(model, nodes)
    assert placer_of(model, {*nodes, newcomer}) in (placer, newcomer)
    for leaver in nodes - {placer}:
        assert placer_of(model, nodes - {leaver}) == placer


def test_models_spread_over_all_nodes() -> None:
    nodes = [f"node-{number}" for number in range(4)]
    placed = [placer_of(f"model-{number}", nodes) for number in range(400)]
    assert min(placed.count(node) for node in nodes) > 60


def test_plan_names_nodes_and_shards_in_ring_order() -> None:
    stages = plan(topology(a=300, b=900), STRATEGY, "m", 8, shard_bytes)
    assert stages == (PlacedStage("id-b", Shard("m", 0, 6, 8)), PlacedStage("id-a", Shard("m", 6, 8, 8)))


def test_oversized_model_is_reported_with_both_sizes() -> None:
    with pytest.raises(DoesNotFit) as refused:
        plan(topology(alpha=70, beta=60), STRATEGY, "big", 100, shard_bytes)
    sentence = str(refused.value)
    assert "big needs 1.1 GB" in sentence
    assert "alpha 0.1 GB" in sentence
    assert "beta 0.1 GB" in sentence
    assert "add a node" in sentence


def test_plan_begins_stages_at_the_starts_only() -> None:
    stages = plan(topology(a=900, b=900), STRATEGY, "m", 10, shard_bytes, starts=(0, 4, 8))
    assert [stage.shard.start_layer for stage in stages] == [0, 8]
    stages = plan(topology(a=900, b=900, c=900, d=900), STRATEGY, "m", 10, shard_bytes, starts=(0, 4, 8))
    assert [stage.shard.start_layer for stage in stages] == [0, 4, 8]


def test_model_that_cannot_be_cut_is_placed_on_the_roomiest_node() -> None:
    stages = plan(topology(a=300, b=900, c=600), STRATEGY, "m", 8, shard_bytes, starts=(0,))
    assert stages == (PlacedStage("id-b", whole("m", 8)),)


def test_model_that_cannot_be_cut_needs_one_node_with_room() -> None:
    with pytest.raises(DoesNotFit, match=r"on one node, because it cannot be split, and no node here has as much \(a"):
        plan(topology(a=100, b=120), STRATEGY, "m", 8, shard_bytes, starts=(0,))


def test_node_below_the_smallest_stage_is_left_out() -> None:
    stages = plan(topology(a=900, b=85), STRATEGY, "m", 8, shard_bytes, starts=(0, 4))  # b has room for three layers
    assert stages == (PlacedStage("id-a", whole("m", 8)),)


def test_shortage_is_reported_without_any_node() -> None:
    with pytest.raises(DoesNotFit, match=r"m needs 0\.1 GB .*\(no node free\)"):
        plan(Topology(), STRATEGY, "m", 8, shard_bytes)


def test_node_below_one_layer_is_left_out() -> None:
    graph = topology(large=1000, tiny=30)
    assert able(graph, "m", 8, shard_bytes).node_ids == ("id-large",)
    assert plan(graph, STRATEGY, "m", 8, shard_bytes) == (PlacedStage("id-large", Shard("m", 0, 8, 8)),)


def test_node_that_takes_no_stage_more_is_left_out() -> None:
    full = NodeRecord("id-full", "full", 1, 1, DeviceCapabilities(memory_available=1000 * MB, stages_left=0))
    graph = topology(free=500).with_node(full)
    assert [stage.node_id for stage in plan(graph, STRATEGY, "m", 8, shard_bytes)] == ["id-free"]
    with pytest.raises(DoesNotFit, match=r"\(full 1\.0 GB free, but it takes no stage more; see --max-stages\)"):
        plan(Topology().with_node(full), STRATEGY, "m", 8, shard_bytes)


@settings(max_examples=300)
@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 800), max_size=6), st.integers(1, 40))
def test_plan_never_exceeds_the_memory_of_a_node(memory_mb: dict[str, int], n_layers: int) -> None:
    graph = topology(**memory_mb)
    try:
        stages = plan(graph, STRATEGY, "m", n_layers, shard_bytes)
    except DoesNotFit:
        return
    assert [layer for stage in stages for layer in stage.shard.layers] == list(range(n_layers))
    for stage in stages:
        assert shard_bytes(stage.shard) <= memory_mb[stage.node_id.removeprefix("id-")] * MB


def test_node_needs_room_for_weights_and_a_chat() -> None:
    card = Catalogue.load().get(DEFAULT_MODEL)
    shard = whole(card.id, card.n_layers)
    weights, need = card.shard_bytes(shard) // MB, least_bytes(card, shard, DeviceCapabilities()) // MB + 1
    assert need - weights == 189  # 4096 positions of 30 layers, each of 3 key and 3 value heads of 64 float32
    plan(topology(a=need), STRATEGY, card.id, card.n_layers, partial(least_bytes, card))
    with pytest.raises(DoesNotFit, match=r"needs 0\.7 GB of memory for its weights and one chat"):
        plan(topology(a=need - 1), STRATEGY, card.id, card.n_layers, partial(least_bytes, card))


def test_short_context_needs_less_memory() -> None:
    card = msgspec.structs.replace(Catalogue.load().get(DEFAULT_MODEL), context_length=100)
    shard = Shard(card.id, 0, 3, card.n_layers)
    assert card.least_kv_bytes(shard) == card.kv_bytes(shard, 100) == 100 * 3 * 2 * 3 * 64 * 4


def test_instance_lists_its_nodes_in_ring_order() -> None:
    stages = (PlacedStage("b", Shard("m", 0, 1, 2)), PlacedStage("a", Shard("m", 1, 2, 2)))
    assert Instance("i", "m", 1, stages).node_ids == ("b", "a")


def test_head_is_not_balanced_if_memory_is_short() -> None:
    for available, layers in ((1000, [19, 11]), (200, [15, 15])):
        stages = plan(topology(a=available, b=available), STRATEGY, "m", 30, shard_bytes, head=8)
        assert [len(stage.shard.layers) for stage in stages] == layers


def held(*nodes: str) -> Instance:
    """Return an instance with one of eight layers on each node, and the rest on the last."""
    bounds = [*range(len(nodes)), 8]
    stages = (PlacedStage(f"id-{node}", Shard("m", bounds[at], bounds[at + 1], 8)) for at, node in enumerate(nodes))
    return Instance("i", "m", 1, tuple(stages))


def measured(graph: Topology) -> Topology:
    """Return the topology with an engine on every node."""
    for node in graph.nodes:
        engine = msgspec.structs.replace(node.capabilities, engine="numpy")
        graph = graph.with_node(msgspec.structs.replace(node, sequence=node.sequence + 1, capabilities=engine))
    return graph


def larger(graph: Topology, instance: Instance, n_layers: int = 8) -> frozenset[str]:
    return larger_ring(graph, STRATEGY, instance, n_layers, shard_bytes)


def test_ring_grows_over_a_node_that_has_joined() -> None:
    assert larger(measured(topology(a=900, b=900)), held("a")) == {"id-a", "id-b"}
    assert larger(measured(topology(a=900, b=900)), held("a", "b")) == frozenset()


def test_ring_grows_no_further_than_a_model_may_be_cut() -> None:
    graph = measured(topology(a=900, b=900, c=900))
    for starts, wanted in (((0,), set()), ((0, 4), {"id-a", "id-b"}), ((0, 4, 6), {"id-a", "id-b", "id-c"})):
        assert larger_ring(graph, STRATEGY, held("a"), 8, shard_bytes, starts) == wanted


def test_ring_waits_for_a_new_nodes_engines() -> None:
    assert larger(topology(a=900, b=900), held("a")) == frozenset()


def test_node_without_memory_grows_no_ring() -> None:
    assert larger(measured(topology(a=900, b=10)), held("a")) == frozenset()


@given(st.dictionaries(st.sampled_from("abc"), st.integers(1, 800), min_size=3, max_size=3))
def test_memory_of_members_never_changes_a_ring(memory_mb: dict[str, int]) -> None:
    assert larger(measured(topology(**memory_mb)), held("a", "b", "c")) == frozenset()


@given(st.dictionaries(st.sampled_from("ab"), st.integers(1, 800), min_size=2, max_size=2))
def test_member_counts_for_growth_without_free_memory(memory_mb: dict[str, int]) -> None:
    graph = measured(topology(**memory_mb, c=900))
    assert larger(graph, held("a", "b")) == {"id-a", "id-b", "id-c"}


def test_ring_never_has_more_nodes_than_layers() -> None:
    graph = measured(topology(a=100, b=100, c=900))
    two = Instance("i", "m", 1, tuple(PlacedStage(f"id-{n}", Shard("m", at, at + 1, 2)) for at, n in enumerate("ab")))
    assert larger(graph, two, n_layers=2) == frozenset()
