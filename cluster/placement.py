"""Which node places a model, where its layers go, and what an instance of it looks like. Actors carry it out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from cluster.capabilities import DeviceCapabilities
from cluster.partitioning import PartitioningStrategy, shards_of
from cluster.shard import Shard, whole
from cluster.topology import NodeRecord, Topology
from common.limits import MAX_STAGES, Detail, Endpoint, ModelId, Name, Whole

Endpoints = Annotated[tuple[Endpoint, ...], Meta(max_length=16)]


Need = Callable[[Shard, DeviceCapabilities], int]
"""The bytes that a node with these capabilities must have free for a shard: weights, and one session's memory."""


class PlacedStage(msgspec.Struct, frozen=True):
    """One shard of an instance and the engine process that runs it.

    `actor` is the engine's bus address, `endpoints` its data-plane addresses, best first. `positions` is how many
    positions its memory for keys and values holds, `exact_rows` how many rows of a chunk its engine computes with the
    same result as one by one, and `saves` whether those keys and values can be copied. `quantized_bits` is to how many
    bits float matrices were rounded; 0 if none was. `why` says why it runs on `engine`.
    """

    node_id: Name
    shard: Shard
    actor: Name = ""
    engine: Name = ""
    endpoints: Endpoints = ()
    positions: Whole = 0
    exact_rows: Whole = 1
    saves: bool = True
    quantized_bits: Whole = 0
    why: Detail = ""


class Instance(msgspec.Struct, frozen=True):
    """One model placed on one ring. Immutable: a new placement is a new instance under a higher epoch."""

    instance_id: Name
    model_id: ModelId
    epoch: Whole
    stages: Annotated[tuple[PlacedStage, ...], Meta(max_length=MAX_STAGES)]
    placer: Name = ""

    @property
    def node_ids(self) -> tuple[str, ...]:
        """The nodes of the stages, in ring order."""
        return tuple(stage.node_id for stage in self.stages)


class DoesNotFit(Exception):
    """No placement can hold the model; the message gives the need, what each node offers and what would help."""


def placer_of(model_id: str, node_ids: Iterable[str]) -> str:
    """Return the node that places a model, the same for all that ask; needs one node or more.

    It is the one with the highest random weight (Thaler and Ravishankar, "A name-based mapping scheme for
    rendezvous", 1996), so that models move only when their own placer leaves or a better one joins.
    """
    return max(node_ids, key=lambda node_id: hashlib.sha256(f"{model_id}\0{node_id}".encode()).digest())


def able(topology: Topology, model_id: str, n_layers: int, need: Need, starts: Sequence[int] | None = None) -> Topology:
    """Return the nodes that take a stage and have memory for the smallest last one, with the head."""
    last = Shard(model_id, starts[-1] if starts else n_layers - 1, n_layers, n_layers)
    for node in topology.nodes:
        offered = node.capabilities
        if not offered.stages_left or offered.memory_available < need(last, offered):
            topology = topology.without_node(node.node_id)
    return topology


def plan(
    topology: Topology,
    strategy: PartitioningStrategy,
    model_id: str,
    n_layers: int,
    need: Need,
    head: int = 0,
    starts: Sequence[int] | None = None,
) -> tuple[PlacedStage, ...]:
    """Return stages for a model of `n_layers`, without actors or endpoints yet. Raises DoesNotFit.

    `need` gives the memory that a shard needs on a node to be of use. The model's head is as much work as `head`
    layers; that is balanced if memory allows it. `starts` are the layers at which a stage may begin, by default all; if
    it is only 0, the model is placed whole, on the node with most memory free.
    """
    members = able(topology, model_id, n_layers, need, starts)
    groups = len(starts) if starts else n_layers
    for counted in (round(head * groups / n_layers), 0):
        partitions = strategy.partition(members, groups, counted)
        shards = shards_of(partitions, model_id, n_layers, starts) if partitions else ()
        stages = tuple(PlacedStage(part.node_id, shard) for part, shard in zip(partitions, shards, strict=True))
        if stages and all(_fits(stage, topology, need) for stage in stages):
            return stages
    raise DoesNotFit(_shortage(topology, whole(model_id, n_layers), need, alone=groups == 1 < n_layers))


def larger_ring(
    topology: Topology,
    strategy: PartitioningStrategy,
    held: Instance,
    n_layers: int,
    need: Need,
    starts: Sequence[int] | None = None,
) -> frozenset[str]:
    """Return the nodes that the ring of an instance should have, if those are more than it has; else none.

    A node counts if it could take the least that a stage has, or holds one already: what memory the instance itself
    takes, and memory that comes and goes, change nothing. A node that has just joined counts once its engines are
    measured. `starts` is that of `plan`.
    """
    could = able(topology, held.model_id, n_layers, need, starts).node_ids
    ready = tuple(
        node
        for node in topology.nodes
        if node.capabilities.engine and (node.node_id in could or node.node_id in held.node_ids)
    )
    groups = len(starts) if starts else n_layers
    partitions = strategy.partition(msgspec.structs.replace(topology, nodes=ready), groups)
    wanted = frozenset(partition.node_id for partition in partitions)
    return wanted if len(wanted) > len(set(held.node_ids)) else frozenset()


def _fits(stage: PlacedStage, topology: Topology, need: Need) -> bool:
    record = topology.node(stage.node_id)
    return record is not None and need(stage.shard, record.capabilities) <= record.capabilities.memory_available


def _shortage(topology: Topology, model: Shard, need: Need, *, alone: bool) -> str:
    """Say what a whole model needs where it needs least, and what the nodes offer. It may have to run `alone`."""
    nodes = [node.capabilities for node in topology.nodes] or [DeviceCapabilities()]
    least = min(need(model, capabilities) for capabilities in nodes)
    offers = ", ".join(_offer(node) for node in topology.nodes) or "no node free"
    needs = f"{model.model_id} needs {_gb(least)} of memory for its weights and one chat"
    if alone:
        return (
            f"{needs} on one node, because it cannot be split, and no node here has as much ({offers});"
            " free memory, or choose a smaller model"
        )
    return f"{needs}, and does not fit on the nodes here ({offers}); add a node, free memory, or choose a smaller model"


def _offer(node: NodeRecord) -> str:
    full = "" if node.capabilities.stages_left else ", but it takes no stage more; see --max-stages"
    return f"{node.name} {_gb(node.capabilities.memory_available)} free{full}"


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
