"""A model of nodes that place, hold and end stages, over links that lose messages. Time and order are the test's.

The decisions are production's (`Instances`, `StageReview`, `placer_of`); this module only passes messages, as the
actors do. A cut link is noticed on both sides, which `bus.peering.link_state` provides.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple

import msgspec

from cluster.held_stages import HeldStage, StageReview
from cluster.instances import Instances
from cluster.placement import Instance, PlacedStage, placer_of
from cluster.shard import Shard
from cluster.topology import RecordNumber

MODEL = "model"


class Record(NamedTuple):
    number: RecordNumber
    instances: tuple[Instance, ...]
    placing: tuple[str, ...]


class Up(NamedTuple):
    instance: Instance
    joined: tuple[RecordNumber, ...]


class Down(NamedTuple):
    instance_id: str


class Load(NamedTuple):
    instance: Instance
    requested: RecordNumber


class Loaded(NamedTuple):
    instance_id: str


class Join(NamedTuple):
    instance: Instance


class Joined(NamedTuple):
    instance_id: str
    number: RecordNumber


class Unload(NamedTuple):
    instance_id: str


Message = Record | Up | Down | Load | Loaded | Join | Joined | Unload
FACTS = (Record, Up, Down)


@dataclass
class Placement:
    """What a placer waits for."""

    instance: Instance
    loaded: set[str] = field(default_factory=set)
    joined: dict[str, RecordNumber] = field(default_factory=dict)


class Node:
    """One node actor. `send` passes a message to another node or to itself."""

    def __init__(self, node_id: str, cluster: Cluster) -> None:
        self.id = node_id
        self.cluster = cluster
        self.number = RecordNumber(1, 0)
        self.frozen = False
        self.unnoticed: list[tuple[str, bool]] = []  # links that went down or up while it was frozen
        self.held: dict[str, HeldStage] = {}
        self.begin()

    def begin(self) -> None:
        """Start the node actor, which finds the stages of the one before it."""
        self.view = Instances(self.id)
        self.review = StageReview()
        self.placing: dict[str, Placement] = {}
        for other in self.cluster.linked(self.id):
            self.view.link(other)
        self.note_own()

    @property
    def next_number(self) -> RecordNumber:
        return RecordNumber(self.number.incarnation, self.number.sequence + 1)

    def note_own(self) -> None:
        joined = [stage.joined for stage in self.held.values() if stage.joined]
        self.view.record(self.id, self.number, joined, self.placing)

    def publish_record(self) -> None:
        self.number = self.next_number
        self.note_own()
        joined = tuple(stage.joined for stage in self.held.values() if stage.joined)
        self.cluster.publish(self.id, Record(self.number, joined, tuple(self.placing)))

    # -- as a placer

    def place(self, instance_id: str, ring: Iterable[str]) -> None:
        nodes = tuple(ring)
        stages = tuple(PlacedStage(node, Shard(MODEL, at, at + 1, len(nodes))) for at, node in enumerate(nodes))
        instance = Instance(instance_id, MODEL, self.view.next_epoch(MODEL), stages, self.id)
        self.placing[instance_id] = Placement(instance)
        for node in nodes:
            self.cluster.send(self.id, node, Load(instance, self.next_number))

    def abort(self, instance_id: str) -> None:
        for node in self.placing.pop(instance_id).instance.node_ids:
            self.cluster.send(self.id, node, Unload(instance_id))

    def retire_older(self) -> None:
        if placer_of(MODEL, [self.id, *self.cluster.linked(self.id)]) == self.id:
            for older in self.view.older(MODEL):
                for node in older.node_ids:
                    self.cluster.send(self.id, node, Unload(older.instance_id))

    # -- as a member

    def end(self, instance_id: str) -> None:
        if self.held.pop(instance_id, None):
            self.note_own()
            self.view.end(instance_id)
            self.cluster.publish(self.id, Down(instance_id))

    def tick(self, now: float) -> None:
        self.note_own()
        for stage in self.review.to_end(list(self.held.values()), self.view, now):
            self.end(stage.instance_id)

    # -- what it hears

    def peer_down(self, other: str) -> None:
        self.view.unlink(other)
        for stage in list(self.held.values()):
            if stage.joined and other in stage.joined.node_ids:
                self.end(stage.instance_id)
        for placement in list(self.placing.values()):
            if other in placement.instance.node_ids:
                self.abort(placement.instance.instance_id)

    def peer_up(self, other: str) -> None:
        self.view.link(other)
        self.publish_record()

    def receive(self, sender: str, message: Message) -> None:
        if isinstance(message, FACTS):
            self._hear(sender, message)
        else:
            self._serve(sender, message)

    def _hear(self, sender: str, message: Message) -> None:
        match message:
            case Record(number, instances, placing):
                self.view.record(sender, number, instances, placing)
            case Up(instance, joined):
                self.view.announce(instance, joined)
            case Down(instance_id):
                self.view.end(instance_id)

    def _serve(self, sender: str, message: Message) -> None:
        match message:
            case Load(instance, requested):
                self.held[instance.instance_id] = HeldStage(instance.instance_id, sender, requested)
                self.cluster.send(self.id, sender, Loaded(instance.instance_id))
            case Join(instance):
                if stage := self.held.get(instance.instance_id):
                    self.held[instance.instance_id] = msgspec.structs.replace(stage, joined=instance)
                    self.cluster.send(self.id, sender, Joined(instance.instance_id, self.next_number))
                    self.note_own()
            case Unload(instance_id):
                self.end(instance_id)
            case Loaded(instance_id):
                self._loaded(sender, instance_id)
            case Joined(instance_id, number):
                self._joined(sender, instance_id, number)

    def _loaded(self, sender: str, instance_id: str) -> None:
        if placement := self.placing.get(instance_id):
            placement.loaded.add(sender)
            if placement.loaded == set(placement.instance.node_ids):
                for node in placement.instance.node_ids:
                    self.cluster.send(self.id, node, Join(placement.instance))

    def _joined(self, sender: str, instance_id: str, number: RecordNumber) -> None:
        if placement := self.placing.get(instance_id):
            placement.joined[sender] = number
            if len(placement.joined) == len(placement.instance.stages):
                del self.placing[instance_id]
                joined = tuple(placement.joined[node] for node in placement.instance.node_ids)
                self.view.announce(placement.instance, joined)
                self.cluster.publish(self.id, Up(placement.instance, joined))


class Cluster:
    """The nodes, the links between them, and what is under way on each, in order."""

    def __init__(self, names: str) -> None:
        self.cut: set[frozenset[str]] = set()
        self.queues: dict[tuple[str, str], deque[Message]] = {(a, b): deque() for a in names for b in names}
        self.now = 0.0
        self._ids = count(1)
        self.nodes: dict[str, Node] = {}
        for name in names:
            self.nodes[name] = Node(name, self)
        for node in self.nodes.values():
            node.begin()

    def linked(self, node_id: str) -> list[str]:
        return [other for other in self.nodes if other != node_id and frozenset((node_id, other)) not in self.cut]

    def new_id(self) -> str:
        return f"i{next(self._ids)}"

    def send(self, sender: str, receiver: str, message: Message) -> None:
        if sender == receiver or receiver in self.linked(sender):
            self.queues[sender, receiver].append(message)

    def publish(self, sender: str, message: Message) -> None:
        for other in self.linked(sender):
            self.send(sender, other, message)

    def deliver(self, sender: str, receiver: str) -> None:
        if self.queues[sender, receiver] and not self.nodes[receiver].frozen:
            self.nodes[receiver].receive(sender, self.queues[sender, receiver].popleft())

    def deliver_all(self) -> None:
        while any(self.queues.values()):
            for sender, receiver in self.queues:
                self.deliver(sender, receiver)

    def lose_fact(self, sender: str, receiver: str) -> None:
        queue = self.queues[sender, receiver]
        if queue and isinstance(queue[0], FACTS):
            queue.popleft()

    def repeat_fact(self, sender: str, receiver: str) -> None:
        """Have the next fact come once more, behind all that is under way."""
        queue = self.queues[sender, receiver]
        if queue and isinstance(queue[0], FACTS):
            queue.append(queue[0])

    def cut_link(self, one: str, other: str) -> None:
        pair = frozenset((one, other))
        if one == other or pair in self.cut:
            return
        self.cut.add(pair)
        self.queues[one, other].clear()
        self.queues[other, one].clear()
        self._notice(one, other, up=False)
        self._notice(other, one, up=False)

    def join_link(self, one: str, other: str) -> None:
        pair = frozenset((one, other))
        if pair in self.cut and not self.nodes[one].frozen and not self.nodes[other].frozen:
            self.cut.discard(pair)
            self._notice(one, other, up=True)
            self._notice(other, one, up=True)

    def _notice(self, at: str, other: str, *, up: bool) -> None:
        node = self.nodes[at]
        if node.frozen:
            node.unnoticed.append((other, up))
        elif up:
            node.peer_up(other)
        else:
            node.peer_down(other)

    def freeze(self, name: str) -> None:
        """Stop a node for so long that all its links break."""
        self.nodes[name].frozen = True
        for other in self.nodes:
            self.cut_link(name, other)

    def thaw(self, name: str) -> None:
        node = self.nodes[name]
        node.frozen = False
        missed, node.unnoticed = node.unnoticed, []
        for other, up in missed:
            self._notice(name, other, up=up)

    def restart_actor(self, name: str) -> None:
        """End a node actor, with all work that it serves or waits for. Its engines go on."""
        for sender, receiver in self.queues:
            if name in (sender, receiver):
                self.queues[sender, receiver].clear()
        self.nodes[name].begin()

    def restart_node(self, name: str) -> None:
        node = self.nodes[name]
        for other in self.nodes:
            self.cut_link(name, other)
        node.number, node.held, node.frozen = RecordNumber(node.number.incarnation + 1, 0), {}, False
        node.unnoticed.clear()
        node.begin()

    def abort_lost_placements(self) -> None:
        """Abort the placements of which all requests are lost, as `request.check` finds out."""
        under_way = {_instance_id(message) for queue in self.queues.values() for message in queue}
        for node in self.nodes.values():
            for instance_id in [i for i in node.placing if i not in under_way]:
                node.abort(instance_id)

    def heal(self, seconds: int) -> None:
        """Let all nodes run with all links up for so long, with a record of each in every second."""
        for name, node in self.nodes.items():
            if node.frozen:
                self.thaw(name)
        for one in self.nodes:
            for other in self.nodes:
                self.join_link(one, other)
        for _ in range(seconds):
            self.deliver_all()
            self.abort_lost_placements()
            for node in self.nodes.values():
                node.retire_older()
                node.publish_record()
            self.deliver_all()
            self.now += 1.0
            for node in self.nodes.values():
                node.tick(self.now)


def _instance_id(message: Message) -> str:
    match message:
        case Load(instance) | Join(instance):
            return instance.instance_id
        case Loaded(instance_id) | Joined(instance_id):
            return instance_id
    return ""
