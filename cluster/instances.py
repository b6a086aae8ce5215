"""Which instances stand, from facts that may repeat, be lost, or arrive late."""

from __future__ import annotations

from collections.abc import Iterable

from cachetools import LRUCache

from cluster.placement import Instance

MAX_DOWN = 1024  # ids of instances that are down, kept so that a late fact does not bring one back


class Instances:
    """Standing instances by id. The newest of a model is the one with the highest epoch."""

    def __init__(self) -> None:
        self._standing: dict[str, Instance] = {}
        self._down: LRUCache[str, None] = LRUCache(MAX_DOWN)
        self._epochs: dict[str, int] = {}  # the highest of each model

    def mark_up(self, instance: Instance) -> None:
        """Record that an instance stands, unless it is known to be down."""
        self._epochs[instance.model_id] = max(self._epochs.get(instance.model_id, 0), instance.epoch)
        if instance.instance_id not in self._down:
            self._standing[instance.instance_id] = instance

    def mark_down(self, instance_id: str) -> None:
        """Record that an instance is down, for good: none comes back under the same id."""
        self._standing.pop(instance_id, None)
        self._down[instance_id] = None

    def reconcile(self, placer: str, instances: Iterable[Instance]) -> None:
        """Apply a placer's own list: each other instance that it placed is down."""
        named = {instance.instance_id: instance for instance in instances if instance.placer == placer}
        for instance in self.placed_by(placer):
            if instance.instance_id not in named:
                self.mark_down(instance.instance_id)
        for instance in named.values():
            self.mark_up(instance)

    def newest(self, model_id: str) -> Instance | None:
        """Return the newest instance of a model; of two with the same epoch, all nodes choose the same."""
        return max(self._of_model(model_id), key=lambda instance: (instance.epoch, instance.instance_id), default=None)

    def older(self, model_id: str) -> tuple[Instance, ...]:
        """Return the other instances of a model."""
        newest = self.newest(model_id)
        return tuple(instance for instance in self._of_model(model_id) if instance != newest)

    def get(self, instance_id: str) -> Instance | None:
        """Return the standing instance of this id, or None."""
        return self._standing.get(instance_id)

    def on_node(self, node_id: str) -> tuple[Instance, ...]:
        """Return the instances that have a stage on a node."""
        return tuple(instance for instance in self._standing.values() if node_id in instance.node_ids)

    def placed_by(self, node_id: str) -> tuple[Instance, ...]:
        """Return the instances that a node placed."""
        return tuple(instance for instance in self._standing.values() if instance.placer == node_id)

    def next_epoch(self, model_id: str) -> int:
        """Return an epoch higher than any that was seen for the model."""
        return self._epochs.get(model_id, 0) + 1

    def _of_model(self, model_id: str) -> list[Instance]:
        return [instance for instance in self._standing.values() if instance.model_id == model_id]
