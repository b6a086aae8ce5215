"""How a model's layers are dealt to nodes: topology -> partitions -> shards. Arithmetic on capabilities only."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate, pairwise

import msgspec

from cluster.shard import Shard
from cluster.topology import Topology


class Partition(msgspec.Struct, frozen=True):
    """A node's share of a ring, as a range within 0..1."""

    node_id: str
    start: float
    end: float


class PartitioningStrategy(ABC):
    """Divides a ring among nodes. The result depends on the arguments alone, so all nodes compute the same one."""

    @abstractmethod
    def partition(self, topology: Topology, n_layers: int, head: int = 0) -> tuple[Partition, ...]:
        """Return partitions in ring order, which tile 0..1 and are each worth at least one of `n_layers` layers.

        If the model cannot be cut at every layer, groups of layers are dealt instead, and counted in both numbers. The
        last node also computes the model's head, which is as much work as `head` layers. The result is empty if no node
        can take part.
        """


class RingMemoryWeightedPartitioningStrategy(PartitioningStrategy):
    """Divides in proportion to available memory, largest node first; the head counts as layers of the last node.

    Every node of the ring gets one layer, and the rest are apportioned by largest remainder (Hamilton's method), so
    shares always end on layer boundaries. Nodes without memory are left out, and so are the smallest ones if there are
    more nodes than layers. Ties in memory are broken by node id, so that all nodes agree.
    """

    def partition(self, topology: Topology, n_layers: int, head: int = 0) -> tuple[Partition, ...]:
        able = [node for node in topology.nodes if node.capabilities.memory_available > 0]
        members = sorted(able, key=lambda node: (-node.capabilities.memory_available, node.node_id))[:n_layers]
        if not members:
            return ()
        counts = with_head([node.capabilities.memory_available for node in members], n_layers, head)
        bounds = [0, *accumulate(counts)]
        return tuple(
            Partition(node.node_id, bounds[i] / n_layers, bounds[i + 1] / n_layers) for i, node in enumerate(members)
        )


def with_head(weights: Sequence[int], n_layers: int, head: int) -> list[int]:
    """Apportion layers and head together, then take the head off the last share, which keeps at least one layer.

    Returns the layers of each node, in the order of `weights`.
    """
    *others, last = apportion(weights, n_layers + head)
    if last > head or not others:
        return [*others, last - head]
    return [*apportion(weights[:-1], n_layers - 1), 1]


def apportion(weights: Sequence[int], seats: int) -> list[int]:
    """Divide `seats` into whole shares in proportion to `weights` (all > 0), each at least 1. The sum is exact.

    Requires `len(weights) <= seats`. Computes with exact rationals, so that the result is the same on every machine.
    """
    assert 0 < len(weights) <= seats, "apportion: fewer seats than weights"
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


def shards_of(
    partitions: Sequence[Partition], model_id: str, n_layers: int, starts: Sequence[int] | None = None
) -> tuple[Shard, ...]:
    """Return one shard for each partition, in order; they tile 0..n_layers exactly.

    A shard begins at one of `starts`, which ascend from 0; by default at any layer. Raises ValueError if the partitions
    do not tile 0..1 or a share is worth no group of layers between two of them.
    """
    edges = [*(range(n_layers) if starts is None else starts), n_layers]
    groups = len(edges) - 1
    bounds = [0, *(round(partition.end * groups) for partition in partitions)]
    if bounds[:-1] != [round(partition.start * groups) for partition in partitions] or bounds[-1] != groups:
        raise ValueError("the partitions do not tile 0..1")
    return tuple(Shard(model_id, edges[start], edges[end], n_layers) for start, end in pairwise(bounds))
