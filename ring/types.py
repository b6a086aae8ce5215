"""The values that the parts of a stage hand to each other. No sockets, no engine, no decisions."""

from __future__ import annotations

from dataclasses import dataclass

from bus.dataplane.access import best_endpoint
from bus.dataplane.inbound import UNKNOWN_NODE
from bus.dataplane.transport import Array
from cluster.placement import Instance
from ring.sessions import StageSession


@dataclass(frozen=True, slots=True)
class StageCounts:
    """What a stage did since it was loaded; sessions, waiting and stored positions are those of now."""

    sessions: int = 0
    waiting: int = 0
    forwards: int = 0
    rows: int = 0
    reused_rows: int = 0
    stored_positions: int = 0
    drafted: int = 0
    accepted: int = 0
    busy_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class RingView:
    """A stage's place in its ring: its index, the nodes of all stages in order, the end points of the next and the
    first one.

    Of all stages, `positions` is what the smallest memory for keys and values holds, and `exact_rows` the fewest rows
    that an engine computes together as it would each alone.
    """

    index: int
    nodes: tuple[str, ...]
    following: str
    first: str
    positions: int
    exact_rows: int = 1

    @property
    def stages(self) -> int:
        """How many stages the ring has."""
        return len(self.nodes)


NO_RING = RingView(0, (UNKNOWN_NODE,), "", "", 0)
"""The place of a stage that has not joined yet; no node is a neighbour."""


def ring_view(instance: Instance, actor: str) -> RingView:
    """Find the stage of `actor` in an instance.

    Raises StopIteration where it is not a member, and ValueError where an end point is not of the node that is said to
    be there, or cannot be reached from here.
    """
    stages = instance.stages
    index = next(i for i, stage in enumerate(stages) if stage.actor == actor)
    following, first = (best_endpoint(s.endpoints, s.node_id) for s in (stages[(index + 1) % len(stages)], stages[0]))
    positions, exact_rows = (min(held) for held in zip(*((s.positions, s.exact_rows) for s in stages), strict=True))
    return RingView(index, instance.node_ids, following, first, positions, exact_rows)


@dataclass(slots=True, eq=False)
class Step:
    """One session's share of a micro-batch: rows that continue it at `position`. The end of a `last` one is sampled.

    With `rollback` what the session held from `position` on is forgotten first.
    """

    session: StageSession
    position: int
    inputs: Array
    last: bool
    rollback: bool = False
    spent_ns: int = 0

    @property
    def end(self) -> int:
        """The position after the last row."""
        return self.position + len(self.inputs)


@dataclass(frozen=True, slots=True, eq=False)
class Sampled:
    """What a pass gave a session: `tokens` for the positions from `position` on, and drafts of what may follow.

    With `rollback` drafts of the pass before were refuted.
    """

    session: StageSession
    position: int
    tokens: list[int]
    drafts: tuple[int, ...]
    rollback: bool
    finished: bool
    spent_ns: int
