"""Which of its stages a node ends by itself: those that belong to no standing instance. Knows no engines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from cluster.instances import Instances
from cluster.placement import Instance
from cluster.topology import RecordNumber
from common.limits import Name

GRACE_S = 4.0  # two records of every node come in this time


class HeldStage(msgspec.Struct, frozen=True):
    """A stage that a node has, or is loading, for a placer.

    The placer's record of the number `requested` was the first to say that it places the instance. `joined` is the
    instance once the stage has its place in the ring.
    """

    instance_id: Name
    placer: Name
    requested: RecordNumber
    joined: Instance | None = None


class StageReview:
    """Finds the stages to end. One that belongs to nothing at a moment gets GRACE_S: records may be on their way."""

    def __init__(self) -> None:
        self._doubted: dict[str, float] = {}  # since when, by instance id

    def to_end(self, held: Iterable[HeldStage], instances: Instances, now: float) -> list[HeldStage]:
        """Return the stages that have belonged to nothing for GRACE_S, at the monotonic time `now` in seconds."""
        doubtful = {stage.instance_id: stage for stage in _doubtful(held, instances)}
        self._doubted = {instance_id: self._doubted.get(instance_id, now) for instance_id in doubtful}
        return [stage for instance_id, stage in doubtful.items() if now - self._doubted[instance_id] >= GRACE_S]


def _doubtful(held: Iterable[HeldStage], instances: Instances) -> Iterator[HeldStage]:
    for stage in held:
        if stage.joined:
            if instances.get(stage.instance_id) is None:
                yield stage
        elif instances.is_abandoned(stage.instance_id, stage.placer, stage.requested):
            yield stage
