"""Which instances stand, as this node has heard. Pure bookkeeping over facts that may repeat, be lost or come late."""

from __future__ import annotations

from collections.abc import Iterable

from cluster.placement import Instance

MAX_FALLEN = 1024  # ids of instances that are down, kept so that a late fact does not bring one back


class Instances:
    """Standing instances by id. Of a model, the one with the highest epoch counts."""

    def __init__(self) -> None:
        self._standing: dict[str, Instance] = {}
        self._fallen: dict[str, None] = {}
        self._epochs: dict[str, int] = {}

    def stands(self, instance: Instance) -> None:
        """Take in an instance, unless it is known to be down."""
        self._epochs[instance.model_id] = max(self._epochs.get(instance.model_id, 0), instance.epoch)
        if instance.instance_id not in self._fallen:
            self._standing[instance.instance_id] = instance

    def fell(self, instance_id: str) -> None:
        """It is down for good: an instance never comes back under the same id."""
        self._standing.pop(instance_id, None)
        self._fallen[instance_id] = None
        while len(self._fallen) > MAX_FALLEN:
            del self._fallen[next(iter(self._fallen))]

    def recorded(self, placer: str, instances: Iterable[Instance]) -> None:
        """A placer's own list: what it no longer names is down."""
        named = {instance.instance_id: instance for instance in instances if instance.placer == placer}
        for gone in [i.instance_id for i in self.placed_by(placer) if i.instance_id not in named]:
            self.fell(gone)
        for instance in named.values():
            self.stands(instance)

    def of_model(self, model_id: str) -> Instance | None:
        """The newest instance of a model."""
        mine = (instance for instance in self._standing.values() if instance.model_id == model_id)
        return max(mine, key=lambda instance: instance.epoch, default=None)

    def with_id(self, instance_id: str) -> Instance | None:
        """The standing instance of this id."""
        return self._standing.get(instance_id)

    def with_node(self, node_id: str) -> tuple[Instance, ...]:
        """The instances that have a stage on a node."""
        return tuple(instance for instance in self._standing.values() if node_id in instance.node_ids)

    def placed_by(self, node_id: str) -> tuple[Instance, ...]:
        """The instances that a node placed."""
        return tuple(instance for instance in self._standing.values() if instance.placer == node_id)

    def next_epoch(self, model_id: str) -> int:
        """Higher than any that was heard of for the model."""
        return self._epochs.get(model_id, 0) + 1
