"""`cluster.partitioning`: for any topology the shards tile all layers, and every node computes the same ones."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.capabilities import DeviceCapabilities
from cluster.partitioning import Partition, RingMemoryWeightedPartitioningStrategy, apportion, shards_of
from cluster.topology import NodeRecord, Topology

STRATEGY = RingMemoryWeightedPartitioningStrategy()
GIB = 1 << 30

memories = st.one_of(st.just(0), st.integers(1, 2**44), st.sampled_from([GIB, 2 * GIB, 8 * GIB]))
rings = st.dictionaries(st.integers(0, 500).map(lambda number: f"node-{number}"), memories, max_size=24)
layer_counts = st.integers(1, 200)


def topology(memory: dict[str, int]) -> Topology:
    graph = Topology()
    for node_id, available in memory.items():
        record = NodeRecord(node_id, node_id, 1, 1, DeviceCapabilities(memory_available=available))
        graph = graph.with_node(record)
    return graph


heads = st.integers(0, 40)


@settings(max_examples=2000)
@given(rings, layer_counts, heads)
def test_shards_tile_all_layers_without_empty_shards(memory: dict[str, int], n_layers: int, head: int) -> None:
    partitions = STRATEGY.partition(topology(memory), n_layers, head)
    if not any(memory.values()):
        assert partitions == ()
        return
    shards = shards_of(partitions, "m", n_layers)
    assert [layer for shard in shards for layer in shard.layers] == list(range(n_layers))
    assert len(shards) == min(sum(available > 0 for available in memory.values()), n_layers)


@settings(max_examples=500)
@given(rings, layer_counts)
def test_only_the_smallest_nodes_are_left_out(memory: dict[str, int], n_layers: int) -> None:
    inside = {partition.node_id for partition in STRATEGY.partition(topology(memory), n_layers)}
    assert all(memory[node_id] > 0 for node_id in inside)
    outside = [available for node_id, available in memory.items() if node_id not in inside]
    assert not inside or max(outside, default=0) <= min(memory[node_id] for node_id in inside)


@settings(max_examples=300)
@given(st.data(), rings, layer_counts)
def test_order_of_nodes_does_not_matter(data: st.DataObject, memory: dict[str, int], n_layers: int) -> None:
    shuffled = dict(data.draw(st.permutations(list(memory.items()))))
    assert STRATEGY.partition(topology(memory), n_layers) == STRATEGY.partition(topology(shuffled), n_layers)


@settings(max_examples=300)
@given(rings, layer_counts, heads)
def test_more_memory_never_means_fewer_layers(memory: dict[str, int], n_layers: int, head: int) -> None:
    partitions = STRATEGY.partition(topology(memory), n_layers, head)
    counts = [len(shard.layers) for shard in shards_of(partitions, "m", n_layers)] if partitions else []
    assert counts == sorted(counts, reverse=True)


@settings(max_examples=500)
@given(st.lists(st.integers(1, 2**44), min_size=1, max_size=24), st.integers(0, 200))
def test_apportion_gives_out_every_seat(weights: list[int], more: int) -> None:
    counts = apportion(weights, len(weights) + more)
    assert sum(counts) == len(weights) + more
    assert min(counts) >= 1


def test_three_nodes_share_thirty_two_layers_by_memory() -> None:
    partitions = STRATEGY.partition(topology({"a": 3000, "b": 1000, "c": 6000}), 32)
    assert [partition.node_id for partition in partitions] == ["c", "a", "b"]
    assert [len(shard.layers) for shard in shards_of(partitions, "m", 32)] == [19, 10, 3]
    for partition, share in zip(partitions, (0.6, 0.3, 0.1), strict=True):
        assert partition.end - partition.start == pytest.approx(share, abs=1 / 32)


@settings(max_examples=500)
@given(rings, layer_counts, st.sets(st.integers(1, 199)), heads)
def test_shards_begin_only_where_a_model_may_be_cut(
    memory: dict[str, int], n_layers: int, cuts: set[int], head: int
) -> None:
    starts = sorted({0, *(cut for cut in cuts if cut < n_layers)})
    partitions = STRATEGY.partition(topology(memory), len(starts), head)
    shards = shards_of(partitions, "m", n_layers, starts) if partitions else ()
    assert {shard.start_layer for shard in shards} <= set(starts)
    assert [layer for shard in shards for layer in shard.layers] == list(range(n_layers if partitions else 0))
    assert len(shards) == min(sum(available > 0 for available in memory.values()), len(starts))


def test_head_counts_as_layers_of_the_last_node() -> None:
    partitions = STRATEGY.partition(topology({"a": 5, "b": 5}), 30, head=8)
    assert [len(shard.layers) for shard in shards_of(partitions, "m", 30)] == [19, 11]


def test_last_node_keeps_a_layer_beside_the_head() -> None:
    partitions = STRATEGY.partition(topology({"a": 50, "b": 50, "c": 5}), 30, head=8)
    assert [len(shard.layers) for shard in shards_of(partitions, "m", 30)] == [15, 14, 1]


def test_small_node_still_gets_one_layer() -> None:
    partitions = STRATEGY.partition(topology({"a": 1, "b": 10**12}), 4)
    assert [(s.start_layer, s.end_layer) for s in shards_of(partitions, "m", 4)] == [(0, 3), (3, 4)]


def test_largest_nodes_are_chosen_if_layers_are_few() -> None:
    partitions = STRATEGY.partition(topology({"a": 1, "b": 3, "c": 2, "d": 0}), 2)
    assert [partition.node_id for partition in partitions] == ["b", "c"]


def test_equal_nodes_are_ordered_by_id() -> None:
    partitions = STRATEGY.partition(topology({"b": 5, "a": 5}), 5)
    assert [partition.node_id for partition in partitions] == ["a", "b"]
    assert [len(shard.layers) for shard in shards_of(partitions, "m", 5)] == [3, 2]


@pytest.mark.parametrize(
    "bounds",
    [((0.0, 0.5),), ((0.0, 0.5), (0.75, 1.0)), ((0.25, 1.0),), ((0.0, 0.75), (0.5, 1.0)), ((0.0, 0.001), (0.001, 1.0))],
)
def test_partitions_that_do_not_tile_are_refused(bounds: tuple[tuple[float, float], ...]) -> None:
    with pytest.raises(ValueError, match=r"tile|non-empty"):
        shards_of([Partition("n", start, end) for start, end in bounds], "m", 8)
