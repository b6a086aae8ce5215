"""Which instances stand and how they are used, from what the nodes of their stages say. Facts may repeat, be lost, or
arrive late.

An instance stands as long as each of its stages says so: every node lists in its record the instances that it has a
joined stage of. So the record that is missing a stage ends the instance in every view, whatever else was lost, and
nothing else has to speak for it: not its placer, which may have left long ago.
"""

from __future__ import annotations

from collections.abc import Iterable

from cachetools import LRUCache

from cluster.placement import Instance
from cluster.room import InstanceUse, LoadedInstance, StageUse, use_of
from cluster.topology import RecordNumber

MAX_KEPT = 1024  # announcements, and ids of instances that have ended, so that a late fact brings none back
NO_RECORD = RecordNumber(0, 0)


class Instances:
    """The instances as one process of the node `own` sees them. Only linked nodes count, and `own` always is one."""

    def __init__(self, own: str) -> None:
        self._own = own
        self._linked = {own}
        self._numbers: dict[str, RecordNumber] = {}  # of the last record of each node
        self._listed: dict[str, dict[str, Instance]] = {}  # by node: what that record lists, by id
        self._uses: dict[str, dict[str, StageUse]] = {}  # by node: of its stages, by instance id
        self._placing: dict[str, frozenset[str]] = {}  # by node: ids of the instances that it is placing
        self._announced: LRUCache[str, tuple[Instance, tuple[RecordNumber, ...]]] = LRUCache(MAX_KEPT)
        self._ended: LRUCache[str, None] = LRUCache(MAX_KEPT)
        self._epochs: dict[str, int] = {}  # the highest of each model

    # -- what is heard

    def link(self, node_id: str) -> None:
        """Count a node's word from now on."""
        self._linked.add(node_id)

    def unlink(self, node_id: str) -> None:
        """Count a node's word no more, and forget it: once it is linked again, it has to say anew what it has."""
        self._linked.discard(node_id)
        self._numbers.pop(node_id, None)
        self._listed.pop(node_id, None)
        self._uses.pop(node_id, None)
        self._placing.pop(node_id, None)
        for instance, _ in list(self._announced.values()):
            if node_id in instance.node_ids:
                del self._announced[instance.instance_id]

    def record(
        self,
        node_id: str,
        number: RecordNumber,
        instances: Iterable[Instance],
        placing: Iterable[str] = (),
        uses: Iterable[StageUse] = (),
    ) -> None:
        """Take a node's record; one that is older than its last is ignored.

        It lists the instances that the node has a joined stage of, the ids of those that it is placing, and how its
        stages are used.
        """
        if number < self._number(node_id):
            return
        self._numbers[node_id] = number
        self._placing[node_id] = frozenset(placing)
        self._uses[node_id] = {use.instance_id: use for use in uses}
        self._listed[node_id] = {i.instance_id: i for i in instances if node_id in i.node_ids}
        for instance in self._listed[node_id].values():
            self._note_epoch(instance)
        for instance, joined in list(self._announced.values()):
            if all(self._number(node) >= at for node, at in zip(instance.node_ids, joined, strict=True)):
                del self._announced[instance.instance_id]  # the records say it now, or say that it has ended

    def announce(self, instance: Instance, joined: tuple[RecordNumber, ...]) -> None:
        """Take the news that all stages have joined. `joined` has the number of the first record to list each."""
        self._note_epoch(instance)
        if len(joined) == len(instance.stages):
            self._announced[instance.instance_id] = instance, joined

    def end(self, instance_id: str) -> None:
        """Take the news that a stage has ended, for good: no instance comes back under the same id."""
        self._announced.pop(instance_id, None)
        self._ended[instance_id] = None

    def heard_all(self, node_ids: Iterable[str]) -> bool:
        """Return whether a record of each linked node among these has come since it was linked."""
        return all(node_id in self._numbers for node_id in node_ids if node_id in self._linked)

    # -- what follows

    def standing(self) -> tuple[Instance, ...]:
        """Return all instances that stand, by id."""
        known = {i.instance_id: i for listed in self._listed.values() for i in listed.values()}
        known |= {instance_id: instance for instance_id, (instance, _) in self._announced.items()}
        return tuple(known[instance_id] for instance_id in sorted(known) if self._stands(known[instance_id]))

    def placing(self) -> frozenset[str]:
        """Return the ids of the instances that linked nodes are placing."""
        return frozenset().union(*self._placing.values())

    def loaded(self) -> tuple[LoadedInstance, ...]:
        """Return all instances that stand, by id, with their use."""
        return tuple(LoadedInstance(instance, self._use(instance)) for instance in self.standing())

    def newest(self, model_id: str) -> Instance | None:
        """Return the newest instance of a model; of two with the same epoch, all nodes choose the same."""
        return max(self._of_model(model_id), key=lambda instance: (instance.epoch, instance.instance_id), default=None)

    def older(self, model_id: str) -> tuple[Instance, ...]:
        """Return the other instances of a model."""
        newest = self.newest(model_id)
        return tuple(instance for instance in self._of_model(model_id) if instance != newest)

    def get(self, instance_id: str) -> Instance | None:
        """Return the standing instance of this id, or None."""
        return next((i for i in self.standing() if i.instance_id == instance_id), None)

    def is_abandoned(self, instance_id: str, placer: str, requested: RecordNumber) -> bool:
        """Return whether a placer no longer places an instance, which its record of the number `requested` listed."""
        if placer not in self._linked:
            return True
        return self._number(placer) >= requested and instance_id not in self._placing[placer]

    def next_epoch(self, model_id: str) -> int:
        """Return an epoch higher than any that was seen for the model."""
        return self._epochs.get(model_id, 0) + 1

    def _of_model(self, model_id: str) -> list[Instance]:
        return [instance for instance in self.standing() if instance.model_id == model_id]

    def _use(self, instance: Instance) -> InstanceUse:
        return use_of([self._uses.get(node, {}).get(instance.instance_id) for node in instance.node_ids])

    def _stands(self, instance: Instance) -> bool:
        return instance.instance_id not in self._ended and all(
            node_id in self._linked and self._says(at, node_id, instance)
            for at, node_id in enumerate(instance.node_ids)
        )

    def _says(self, at: int, node_id: str, instance: Instance) -> bool:
        """Return whether the node of a stage has it, by its record or, until that has come, by the announcement."""
        if self._listed.get(node_id, {}).get(instance.instance_id) == instance:
            return True
        announced, joined = self._announced.get(instance.instance_id, (None, ()))
        return announced == instance and self._number(node_id) < joined[at]

    def _number(self, node_id: str) -> RecordNumber:
        return self._numbers.get(node_id, NO_RECORD)

    def _note_epoch(self, instance: Instance) -> None:
        self._epochs[instance.model_id] = max(self._epochs.get(instance.model_id, 0), instance.epoch)
