"""Node actor: publishes this node's record, holds its stages, and places models.

Which node places a model follows from the model's id, so every node passes `instance.ensure` to the same one. What
other nodes do is known from their facts only.
"""

from __future__ import annotations

import logging
import time

import msgspec

from actors.device import Device
from actors.placer import Placer
from actors.stage_host import StageHost
from bus.actor import Actor, every, on
from bus.client import BusClient, RequestError
from bus.messages import (
    ActorDown,
    HubDescribe,
    HubState,
    InstanceDown,
    InstanceEnsure,
    InstanceReady,
    InstanceUp,
    NodeRecorded,
    PeerDown,
    PeerUp,
    RequestDone,
    ShardLoad,
    ShardLoaded,
    ShardUnload,
    TopologyChanged,
    TopologyGet,
    TopologyState,
)
from bus.net.identity import own_role
from bus.process import run_actor
from bus.wire import Envelope
from cluster.failures import FailureCode
from cluster.instances import Instances
from cluster.partitioning import RingMemoryWeightedPartitioningStrategy
from cluster.placement import Instance, placer_of
from cluster.roles import Role
from cluster.topology import NodeRecord, Topology
from common.config import NodeConfig
from common.version import running_version
from models.card import ModelCard
from models.catalogue import Catalogue
from models.errors import CatalogueError, UnknownModel

logger = logging.getLogger(__name__)

ENSURE_TIMEOUT_S = 3600.0  # a first download may take that long
START_TIMEOUT_S = 10.0
RECORD_EVERY_S = 0.25
REPEAT_AFTER_S = 2.0


class NodeActor(Actor):
    """Serves `instance.ensure` as a placer and `shard.load` as a member."""

    name = "node"

    def __init__(self, config: NodeConfig, bus: BusClient) -> None:
        super().__init__(bus)
        self._config = config
        self._catalogue = Catalogue.load(config.cards_path)
        self._device = Device(config)
        self._role = own_role(config)
        self._topology = Topology()
        self._instances = Instances()
        self._placer = Placer(bus, self._instances, RingMemoryWeightedPartitioningStrategy(), self._current_topology)
        self._stages = StageHost(config, bus, self._device)
        self._sequence = 0
        self._published: NodeRecorded | None = None
        self._published_at = 0.0
        self._endpoint = ""

    async def started(self) -> None:
        """Start the measurement, which only shards wait for, and get the links and instances that this node knows."""
        self._device.start()
        self._endpoint = (await self.bus.request("hub", HubDescribe(), HubState, START_TIMEOUT_S)).endpoint
        state = await self.bus.request_at_start("topology", TopologyGet(), TopologyState, START_TIMEOUT_S)
        self._topology = state.topology
        for instance in state.instances:
            self._instances.mark_up(instance)

    async def stopping(self) -> None:
        """End the measuring and the placements that run."""
        await self._device.stop()
        await self._placer.stop()

    # -- this node's record

    @every(RECORD_EVERY_S)
    async def record(self) -> None:
        """Publish the record: at once when it changes, else every two seconds."""
        record = self._own_record()
        unchanged = self._published is not None and _nearly_equal(record, self._published)
        if not unchanged or time.monotonic() - self._published_at >= REPEAT_AFTER_S:
            await self._publish(record)

    @on(PeerUp)
    async def peer_up(self, message: PeerUp, envelope: Envelope) -> None:
        """Publish the record at once: a new node has not seen it."""
        await self._publish(self._own_record())

    async def _publish(self, record: NodeRecorded) -> None:
        self._published, self._published_at = record, time.monotonic()
        await self.bus.publish(record)

    def _own_record(self) -> NodeRecorded:
        self._sequence += 1
        config = self._config
        record = NodeRecord(
            config.node_id,
            config.name,
            config.incarnation,
            self._sequence,
            self._device.now(self._nodes_here()),
            config.api(),
            self._endpoint,
            running_version(),
            config.machine,
        )
        return NodeRecorded(record, self._instances.placed_by(self.bus.node_id))

    def _nodes_here(self) -> int:
        return max(self._topology.on_machine(self._config.machine), 1)

    # -- what other nodes do

    @on(TopologyChanged)
    async def topology_changed(self, message: TopologyChanged, envelope: Envelope) -> None:
        """Use the graph as this node's topology actor sees it, and grow rings over nodes that have joined."""
        self._topology = message.topology
        self._grow_rings()

    @on(NodeRecorded)
    async def recorded(self, message: NodeRecorded, envelope: Envelope) -> None:
        """Update what another node placed, and grow the rings that this node is the placer of now."""
        if envelope.node not in (self.bus.node_id, ""):
            self._instances.reconcile(envelope.node, message.instances)
            self._grow_rings()

    @on(InstanceUp)
    async def instance_up(self, message: InstanceUp, envelope: Envelope) -> None:
        """Record that an instance stands."""
        self._instances.mark_up(message.instance)

    @on(InstanceDown)
    async def instance_down(self, message: InstanceDown, envelope: Envelope) -> None:
        """Forget an instance, and end its stage here."""
        self._instances.mark_down(message.instance_id)
        await self._stages.end(message.instance_id)

    @on(PeerDown)
    async def peer_down(self, message: PeerDown, envelope: Envelope) -> None:
        """Declare every instance down that had a stage on the lost node, and end what it had begun to place."""
        for instance in self._instances.on_node(message.node_id):
            await self._declare_down(instance, f"node {message.node_id} is gone ({message.reason})")
        await self._stages.placer_lost(message.node_id, lambda instance_id: bool(self._instances.get(instance_id)))

    @on(ActorDown)
    async def actor_down(self, message: ActorDown, envelope: Envelope) -> None:
        """Declare an instance down if its engine here has ended."""
        if envelope.node != self.bus.node_id:
            return
        for instance_id in self._stages.engine_ended(message.name):
            if instance := self._instances.get(instance_id):
                await self._declare_down(instance, f"{message.name} on {self._config.name} ended ({message.reason})")

    async def _declare_down(self, instance: Instance, reason: str) -> None:
        logger.warning("instance %s of %s is down: %s", instance.instance_id, instance.model_id, reason)
        self._instances.mark_down(instance.instance_id)
        await self._stages.end(instance.instance_id)
        await self.bus.publish(InstanceDown(instance.instance_id, instance.epoch, reason))

    # -- as a placer

    @on(InstanceEnsure)
    async def ensure(self, message: InstanceEnsure, envelope: Envelope) -> InstanceReady:
        """Return a standing instance, placed now if there is none.

        Another node's request is not passed on again: two nodes may see different members for a moment.
        """
        card = self._card(message.model_id)
        placer = placer_of(card.id, self._members())
        if placer != self.bus.node_id and envelope.node == self.bus.node_id:
            return await self.bus.request(f"{placer}/node", InstanceEnsure(card.id), InstanceReady, ENSURE_TIMEOUT_S)
        return InstanceReady(await self._placer.ensure(card))

    def _grow_rings(self) -> None:
        """Grow the rings of the models that this node places."""
        if self._role is not Role.MEMBER:
            return
        for card in self._catalogue.cards():
            if self._instances.newest(card.id) and placer_of(card.id, self._members()) == self.bus.node_id:
                self._placer.grow(card, self._topology)

    def _members(self) -> set[str]:
        """Return the nodes that may place models.

        Raises RequestError if this node may not request an instance, or no member is linked.
        """
        if self._role is Role.OBSERVER:
            raise RequestError(
                FailureCode.FORBIDDEN, "this node only observes; chat through another, or join with a gateway's code"
            )
        members = {*self._topology.node_ids, *([self.bus.node_id] if self._role is Role.MEMBER else [])}
        if not members:
            raise RequestError(
                FailureCode.NO_MEMBER,
                f"no member of cluster {self._config.cluster} is linked to this gateway yet; try again in a moment",
            )
        return members

    async def _current_topology(self) -> Topology:
        """Return the topology with this node's record as of now, so that what was just unloaded counts."""
        await self._device.measured()
        return self._topology.with_node(self._own_record().record)

    def _card(self, model_id: str) -> ModelCard:
        try:
            return self._catalogue.get(model_id)
        except UnknownModel as error:
            raise RequestError(FailureCode.MODEL_NOT_FOUND, str(error)) from None

    # -- as a member

    @on(ShardLoad)
    async def load_shard(self, message: ShardLoad, envelope: Envelope) -> ShardLoaded:
        """Load a shard into an engine process of its own."""
        if self._role is not Role.MEMBER:
            raise RequestError(
                FailureCode.FORBIDDEN, f"{self._config.name} has the role {self._role} and holds no layers"
            )
        card = self._card(message.shard.model_id)
        return await self._stages.load(message, card, self._nodes_here(), envelope.node)

    @on(ShardUnload)
    async def unload_shard(self, message: ShardUnload, envelope: Envelope) -> RequestDone:
        """Drain the stage of an instance, then end its process."""
        await self._stages.drain(message.instance_id)
        return RequestDone()


def _nearly_equal(one: NodeRecorded, other: NodeRecorded) -> bool:
    """Return whether two records differ in the sequence number and less than a 32nd of the memory at most."""
    now, then = one.record.capabilities, other.record.capabilities
    if abs(now.memory_available - then.memory_available) > now.memory_total // 32:
        return False
    capabilities = msgspec.structs.replace(then, memory_available=now.memory_available)
    record = msgspec.structs.replace(other.record, sequence=one.record.sequence, capabilities=capabilities)
    return one == msgspec.structs.replace(other, record=record)


if __name__ == "__main__":
    run_actor(NodeActor, NodeActor.name, fatal=CatalogueError)
