"""Topology -> partitions -> shards. Pure arithmetic on capabilities; no model files, no sockets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate, pairwise

import msgspec

from cluster.shard import Shard
from cluster.topology import NodeRecord, Topology


class Partition(msgspec.Struct, frozen=True):
    """A node's share of a ring, as a range of 0..1."""

    node_id: str
    start: float
    end: float


class PartitioningStrategy(ABC):
    """How a ring is shared out. Every node that asks with the same topology gets the same answer."""

    @abstractmethod
    def partition(self, topology: Topology, n_layers: int, head: int = 0) -> tuple[Partition, ...]:
        """Partitions in ring order: they tile 0..1, and each is worth at least one of `n_layers` layers.

        The last node also has the model's head, which is as much work as `head` layers. An empty result means that
        no node can take part.
        """


class RingMemoryWeightedPartitioningStrategy(PartitioningStrategy):
    """Shares in proportion to available memory, largest node first; the head counts as layers of the last.

    Layers are dealt out by largest remainder (Hamilton's method) after every ring member got one, so shares
    always land on layer boundaries. A node without memory, or beyond one node a layer, is left out.
    """

    def partition(self, topology: Topology, n_layers: int, head: int = 0) -> tuple[Partition, ...]:
        """See the base class; ties in memory are broken by node id, so all nodes agree."""
        members = _members(topology.nodes, n_layers)
        if not members:
            return ()
        counts = with_head([_memory(node) for node in members], n_layers, head)
        bounds = [0, *accumulate(counts)]
        return tuple(
            Partition(node.node_id, bounds[i] / n_layers, bounds[i + 1] / n_layers) for i, node in enumerate(members)
        )


def _memory(node: NodeRecord) -> int:
    return node.capabilities.memory_available


def _members(nodes: Sequence[NodeRecord], n_layers: int) -> list[NodeRecord]:
    able = [node for node in nodes if _memory(node) > 0]
    return sorted(able, key=lambda node: (-_memory(node), node.node_id))[:n_layers]


def with_head(weights: Sequence[int], n_layers: int, head: int) -> list[int]:
    """Deal layers and head together, then take the head off the last, who keeps one layer at least."""
    *others, last = apportion(weights, n_layers + head)
    if last > head or not others:
        return [*others, last - head]
    return [*apportion(weights[:-1], n_layers - 1), 1]


def apportion(weights: Sequence[int], seats: int) -> list[int]:
    """Deal `seats` whole seats in proportion to `weights` (all > 0), at least one each; the sum is exact.

    Needs `len(weights) <= seats`. Exact rationals, so the result is the same on every machine.
    """
    assert 0 < len(weights) <= seats, "apportion: more takers than seats"
    spare, total = seats - len(weights), sum(weights)
    shares = [Fraction(weight * seats, total) - 1 for weight in weights]
    wanted = [max(share, Fraction(0)) for share in shares]
    scale = Fraction(spare) / sum(wanted) if any(wanted) else Fraction(0)
    exact = [want * scale for want in wanted]
    counts = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (counts[i] - exact[i], i))
    for i in by_remainder[: spare - sum(counts)]:
        counts[i] += 1
    return [1 + count for count in counts]


def shards_of(partitions: Sequence[Partition], model_id: str, n_layers: int) -> tuple[Shard, ...]:
    """One shard a partition, in order; they tile 0..n_layers exactly.

    Raises ValueError where the partitions do not tile 0..1 or a share is worth no layer.
    """
    bounds = [0, *(round(partition.end * n_layers) for partition in partitions)]
    starts = [round(partition.start * n_layers) for partition in partitions]
    if bounds[:-1] != starts or bounds[-1] != n_layers:
        raise ValueError("the partitions do not tile 0..1")
    return tuple(Shard(model_id, start, end, n_layers) for start, end in pairwise(bounds))
