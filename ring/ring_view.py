"""How one stage sees its ring."""

from __future__ import annotations

from dataclasses import dataclass

from bus.dataplane.access import best_endpoint
from cluster.placement import Instance


@dataclass(frozen=True, slots=True)
class RingView:
    """A stage's index in its ring, the nodes of all stages in order, and the endpoints of the next and the first stage.

    After the last stage comes the first. Of all stages, `positions` is what the smallest memory for keys and values
    holds, and `exact_rows` the fewest rows that an engine computes together as it would each alone. `saves` is whether
    all engines can copy keys and values; else the ring stores no prefixes, and `exact_rows` is 1, for no drafts.
    """

    index: int
    nodes: tuple[str, ...]
    next_endpoint: str
    first_endpoint: str
    positions: int
    exact_rows: int = 1
    saves: bool = True

    @property
    def size(self) -> int:
        """How many stages the ring has."""
        return len(self.nodes)


def ring_view(instance: Instance, actor: str) -> RingView:
    """Return the ring of an instance as the stage of `actor` sees it.

    Raises StopIteration if the actor has no stage in it, and ValueError if an endpoint belongs to another node than
    the instance says or cannot be reached from here.
    """
    stages = instance.stages
    index = next(i for i, stage in enumerate(stages) if stage.actor == actor)
    saves = all(stage.saves for stage in stages)
    following, first = stages[(index + 1) % len(stages)], stages[0]
    return RingView(
        index,
        instance.node_ids,
        best_endpoint(following.endpoints, following.node_id),
        best_endpoint(first.endpoints, first.node_id),
        min(stage.positions for stage in stages),
        min(stage.exact_rows for stage in stages) if saves else 1,
        saves,
    )
