"""Which node places a model, and what an instance of it looks like. Pure; actors carry it out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Annotated

import msgspec
from msgspec import Meta

from cluster.partitioning import PartitioningStrategy, shards_of
from cluster.shard import Shard, whole
from cluster.topology import Topology
from common.limits import MAX_STAGES, Endpoint, ModelId, Name, Whole

Endpoints = Annotated[tuple[Endpoint, ...], Meta(max_length=16)]


class PlacedStage(msgspec.Struct, frozen=True):
    """One shard of an instance and the engine process that runs it.

    `actor` is the engine's bus address, `endpoints` its data-plane addresses, best first, `positions` what its memory
    for keys and values holds, `exact_rows` how many rows of a chunk its engine computes as it would each alone.
    """

    node_id: Name
    shard: Shard
    actor: Name = ""
    engine: Name = ""
    endpoints: Endpoints = ()
    positions: Whole = 0
    exact_rows: Whole = 1


class Instance(msgspec.Struct, frozen=True):
    """One model placed on one ring. Immutable: a new placement is a new instance under a higher epoch."""

    instance_id: Name
    model_id: ModelId
    epoch: Whole
    stages: Annotated[tuple[PlacedStage, ...], Meta(max_length=MAX_STAGES)]
    placer: Name = ""

    @property
    def node_ids(self) -> tuple[str, ...]:
        """The members in ring order."""
        return tuple(stage.node_id for stage in self.stages)


class DoesNotFit(Exception):
    """No placement can hold the model; the message gives the need, what each node offers and what would help."""


def placer_of(model_id: str, node_ids: Iterable[str]) -> str:
    """The node that places a model: highest random weight (Thaler & Ravishankar 1998). Needs one node or more."""
    return max(node_ids, key=lambda node_id: hashlib.sha256(f"{model_id}\0{node_id}".encode()).digest())


def able(topology: Topology, model_id: str, n_layers: int, least_bytes: Callable[[Shard], int]) -> Topology:
    """The topology without nodes that cannot hold even the last layer with the head: they would only be in the way."""
    least = least_bytes(Shard(model_id, n_layers - 1, n_layers, n_layers))
    for node in topology.nodes:
        if node.capabilities.memory_available < least:
            topology = topology.without_node(node.node_id)
    return topology


def plan(
    topology: Topology,
    strategy: PartitioningStrategy,
    model_id: str,
    n_layers: int,
    least_bytes: Callable[[Shard], int],
    head: int = 0,
) -> tuple[PlacedStage, ...]:
    """Stages for a model of `n_layers`, without actors or endpoints yet.

    `least_bytes` gives the memory that a shard needs to be of use: weights, and keys and values of one session.
    The model's head is as much work as `head` layers, which is balanced where memory allows it. Raises DoesNotFit.
    """
    members = able(topology, model_id, n_layers, least_bytes)
    for counted in (head, 0):
        partitions = strategy.partition(members, n_layers, counted)
        shards = shards_of(partitions, model_id, n_layers) if partitions else ()
        stages = tuple(PlacedStage(part.node_id, shard) for part, shard in zip(partitions, shards, strict=True))
        if stages and all(least_bytes(stage.shard) <= _memory(topology, stage.node_id) for stage in stages):
            return stages
    raise DoesNotFit(_shortage(topology, model_id, least_bytes(whole(model_id, n_layers))))


def _memory(topology: Topology, node_id: str) -> int:
    record = topology.node(node_id)
    return record.capabilities.memory_available if record else 0


def _shortage(topology: Topology, model_id: str, need: int) -> str:
    offers = ", ".join(f"{n.name} {_gb(n.capabilities.memory_available)}" for n in topology.nodes) or "no node"
    return (
        f"{model_id} needs {_gb(need)} of memory for its weights and one chat, and does not fit on the nodes here "
        f"({offers} free); "
        "add a node, free memory, or choose a smaller model"
    )


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
