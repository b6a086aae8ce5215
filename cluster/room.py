"""Which idle instances to end so that another model fits. Pure: what stands and how it is used in, what to end out.

Knows no models: whether one fits a topology is the caller's function.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

from cluster.placement import DoesNotFit, Instance
from cluster.topology import NodeRecord, Topology
from common.limits import MAX_STAGES, Name, Whole

Fits = Callable[[Topology], bool]
"""Whether a model can be placed on the nodes of a topology."""


class StageUse(msgspec.Struct, frozen=True):
    """How a node's stage of an instance is used.

    `idle_s` is for how many seconds it had no session, rounded up; 0 while it has one or waits for its first one.
    `frees` is how many bytes its end adds to the memory that the node offers.
    """

    instance_id: Name
    idle_s: Whole = 0
    frees: Whole = 0


class InstanceUse(msgspec.Struct, frozen=True):
    """How an instance is used: for how many seconds none of its stages had a session, and what each stage frees.

    `idle_s` is 0 while it is in use, and until all of its nodes have reported its use.
    """

    idle_s: Whole = 0
    frees: Annotated[tuple[Whole, ...], Meta(max_length=MAX_STAGES)] = ()


class LoadedInstance(NamedTuple):
    """An instance that stands, and how it is used."""

    instance: Instance
    use: InstanceUse


def can_place(plan: Callable[[Topology], object], topology: Topology) -> bool:
    """Return whether `plan` places a model on a topology; it raises DoesNotFit if not."""
    try:
        plan(topology)
    except DoesNotFit:
        return False
    return True


def use_of(stages: Sequence[StageUse | None]) -> InstanceUse:
    """Return how an instance is used, from what the nodes of its stages report; None: nothing yet."""
    idle_s = min((stage.idle_s if stage else 0 for stage in stages), default=0)
    return InstanceUse(idle_s, tuple(stage.frees if stage else 0 for stage in stages))


def to_end(topology: Topology, loaded: Iterable[LoadedInstance], fits: Fits) -> tuple[LoadedInstance, ...] | None:
    """Return the idle instances to end so that a model fits: as few as needed, the least recently used ones.

    Returns None if the model would not fit even then; an instance that is in use is never among them.
    """
    idle = sorted(
        (one for one in loaded if one.use.idle_s), key=lambda one: (-one.use.idle_s, one.instance.instance_id)
    )
    counts = (count for count in range(len(idle) + 1) if fits(freed(topology, idle[:count])))
    if (count := next(counts, None)) is None:
        return None
    chosen = idle[:count]
    for spared in reversed(chosen):  # one that frees nothing where it matters
        if fits(freed(topology, rest := [one for one in chosen if one is not spared])):
            chosen = rest
    return tuple(chosen)


def can_grow(topology: Topology, held: LoadedInstance, stages_on: Callable[[Topology], int]) -> bool:
    """Return whether a model gets more stages than an instance of it has, once that has ended.

    `stages_on` returns how many it gets on a topology, 0 if it does not fit. While it is not known what each stage
    frees, growth is taken for possible.
    """
    if not (held.use.frees and all(held.use.frees)):
        return True
    return stages_on(freed(topology, [held])) > len(held.instance.stages)


def freed(topology: Topology, ended: Iterable[LoadedInstance]) -> Topology:
    """Return the topology as it will be once instances have ended."""
    memory: Counter[str] = Counter()
    stages: Counter[str] = Counter()
    for instance, use in ended:
        for node_id, frees in zip(instance.node_ids, use.frees, strict=True):
            memory[node_id] += frees
            stages[node_id] += 1
    return changed(topology, memory, stages)


def empty(topology: Topology) -> Topology:
    """Return the topology as if its nodes had all of their machines' memory to offer."""
    memory = Counter({node.node_id: node.capabilities.memory_total for node in topology.nodes})
    return changed(topology, memory, Counter(topology.node_ids))


def changed(topology: Topology, memory: Counter[str], stages: Counter[str]) -> Topology:
    """Return a topology in which nodes offer so many bytes and stages more, or less, but never less than none."""

    def offering(node: NodeRecord) -> NodeRecord:
        had = node.capabilities
        capabilities = msgspec.structs.replace(
            had,
            memory_available=max(had.memory_available + memory[node.node_id], 0),
            stages_left=max(had.stages_left + stages[node.node_id], 0),
        )
        return msgspec.structs.replace(node, capabilities=capabilities)

    return msgspec.structs.replace(topology, nodes=tuple(offering(node) for node in topology.nodes))
