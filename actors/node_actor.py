"""Node actor: publishes this node's record, holds its stages, and places models.

Which node places a model follows from the model's id, so every node passes `instance.ensure` to the same one. What
other nodes hold is known from their records only, and `cluster.instances` says what follows from them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress

from actors.device import Device
from actors.model_cards import ModelCards
from actors.own_record import OwnRecord
from actors.placer import Placer
from actors.placing.members import placing_members
from actors.placing.unloading import Unloading
from actors.stage_host import StageHost
from bus.actor import Actor, every, on
from bus.client import BusClient, RequestError
from bus.messages import (
    ActorDown,
    HubDescribe,
    HubPeer,
    HubState,
    InstanceDown,
    InstanceEnsure,
    InstanceJoin,
    InstanceJoined,
    InstanceReady,
    InstanceUnload,
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
from bus.process import CannotStart, run_actor
from bus.wire import Envelope
from cluster.failures import FailureCode
from cluster.held_stages import HeldStage, StageReview
from cluster.instances import Instances
from cluster.partitioning import RingMemoryWeightedPartitioningStrategy
from cluster.placement import placer_of
from cluster.roles import Role
from cluster.topology import Topology
from common.config import NodeConfig
from models.card import FolderSource, ModelCard
from models.catalogue import Catalogue
from models.errors import CatalogueError

logger = logging.getLogger(__name__)

ENSURE_TIMEOUT_S = 3600.0  # a first download may take that long
START_TIMEOUT_S = 10.0
RECORD_EVERY_S = 0.25
HEAR_TIMEOUT_S = 3.0  # records are repeated more often


class NodeActor(Actor):
    """Serves `instance.ensure` as a placer and `shard.load` as a member."""

    name = "node"

    def __init__(self, config: NodeConfig, bus: BusClient) -> None:
        super().__init__(bus)
        self._config = config
        self._cards = ModelCards(Catalogue.of_node(config), bus)
        self._device = Device(config)
        self._record = OwnRecord(config, bus)
        self._role = own_role(config)
        self._topology = Topology()
        self._linked_members: set[str] = set()
        self._instances = Instances(config.node_id)
        self._unloading = Unloading(bus, self._instances)
        self._placer = Placer(
            bus,
            self._instances,
            self._unloading,
            RingMemoryWeightedPartitioningStrategy(),
            self._current_topology,
            self._cards.within,
            lambda: self._record.next_number,
            self._cards.fingerprint,
        )
        self._stages = StageHost(config, bus, self._device)
        self._review = StageReview()
        self._record_came = asyncio.Event()

    async def started(self) -> None:
        """Start the measurement, which only shards wait for, and take over what the node actor before this one held."""
        self._device.start()
        hub = await self._hub()
        self._record.endpoint = hub.endpoint
        for peer in hub.peers:
            self._link(peer)
        await self._stages.adopt(hub.actors)
        state = await self.bus.request_at_start("topology", TopologyGet(), TopologyState, START_TIMEOUT_S)
        self._topology = state.topology

    async def stopping(self) -> None:
        """End the measuring and the placements that run."""
        await self._device.stop()
        await self._placer.stop()

    # -- this node's record

    @every(RECORD_EVERY_S)
    async def record(self) -> None:
        """Publish the record if it is due. Raises CannotStart without an engine."""
        if failure := self._device.failure():
            raise CannotStart(failure)
        await self._record.publish_if_due(self._own_record())

    def _own_record(self) -> NodeRecorded:
        stages = self._stages
        record = self._record.make(self._device.now(self._nodes_here(), stages.reserved, len(stages.held)))
        self._note_own_stages()
        return NodeRecorded(record, stages.joined, tuple(self._placer.placing), self._cards.own(), stages.uses)

    def _note_own_stages(self) -> None:
        number, stages = self._record.number, self._stages
        self._instances.record(self.bus.node_id, number, stages.joined, self._placer.placing, stages.uses)

    def _nodes_here(self) -> int:
        return max(self._topology.on_machine(self._config.machine), 1)

    # -- what other nodes do

    @on(PeerUp)
    async def peer_up(self, message: PeerUp, envelope: Envelope) -> None:
        """Count the node's word, and publish the record at once: a new node has not seen it."""
        self._link(message)
        await self._record.publish(self._own_record())

    @on(TopologyChanged)
    async def topology_changed(self, message: TopologyChanged, envelope: Envelope) -> None:
        """Use the graph as this node's topology actor sees it, and grow rings over nodes that have joined."""
        self._topology = message.topology
        self._grow_rings()

    @on(NodeRecorded)
    async def recorded(self, message: NodeRecorded, envelope: Envelope) -> None:
        """Update what another node holds and places, and grow the rings that this node is the placer of now."""
        if envelope.node not in (self.bus.node_id, ""):
            number, placing = message.record.number, message.placing
            self._instances.record(envelope.node, number, message.instances, placing, message.uses)
            self._cards.record(envelope.node, message.models)
            self._record_came.set()
            self._grow_rings()

    @on(InstanceUp)
    async def instance_up(self, message: InstanceUp, envelope: Envelope) -> None:
        """Record that an instance stands."""
        self._instances.announce(message.instance, message.joined)

    @on(InstanceDown)
    async def instance_down(self, message: InstanceDown, envelope: Envelope) -> None:
        """Forget an instance, and end its stage here."""
        self._instances.end(message.instance_id)
        await self._stages.end(message.instance_id)

    @on(PeerDown)
    async def peer_down(self, message: PeerDown, envelope: Envelope) -> None:
        """End the stages here in rings over the lost node: the connections between stages broke as well."""
        self._instances.unlink(message.node_id)
        self._linked_members.discard(message.node_id)
        self._cards.forget(message.node_id)
        for held in self._stages.held:
            if held.joined and message.node_id in held.joined.node_ids:
                await self._end_stage(held, f"node {message.name or message.node_id} is gone ({message.reason})")

    @on(ActorDown)
    async def actor_down(self, message: ActorDown, envelope: Envelope) -> None:
        """Declare an instance down if its engine here has ended."""
        if envelope.node == self.bus.node_id:
            for held in self._stages.engine_ended(message.name):
                await self._declare_down(held, f"{message.name} on {self._config.name} ended ({message.reason})")

    @every(1.0)
    async def review(self) -> None:
        """End the stages that belong to no standing instance, and engines that belong to no stage."""
        self._note_own_stages()
        for held in self._review.to_end(self._stages.held, self._instances, time.monotonic()):
            await self._end_stage(held, "other nodes do not hold their part of it")
        with suppress(RequestError):  # a hub that is being restarted is asked again
            await self._stages.end_strays((await self._hub()).actors, time.monotonic())

    @every(1.0)
    async def look_at_use(self) -> None:
        """Note how the stages here are used, and end instances that were idle for as long as this node keeps them."""
        await self._stages.look(self._nodes_here())
        self._note_own_stages()
        if (keep_s := self._config.keep_loaded_s) >= 0:
            await self._unloading.end_unused({instance.instance_id for instance in self._stages.joined}, keep_s)

    async def _end_stage(self, held: HeldStage, reason: str) -> None:
        await self._stages.end(held.instance_id)
        await self._declare_down(held, reason)

    async def _declare_down(self, held: HeldStage, reason: str) -> None:
        """Tell all nodes that a stage here has ended, if it had its place in a ring."""
        self._instances.end(held.instance_id)
        self._note_own_stages()
        if held.joined:
            logger.warning("instance %s of %s is down: %s", held.instance_id, held.joined.model_id, reason)
            await self.bus.publish(InstanceDown(held.instance_id, held.joined.epoch, reason))

    def _link(self, peer: HubPeer | PeerUp) -> None:
        self._instances.link(peer.node_id)
        if peer.role is Role.MEMBER:
            self._linked_members.add(peer.node_id)

    async def _hub(self) -> HubState:
        return await self.bus.request("hub", HubDescribe(), HubState, START_TIMEOUT_S)

    # -- as a placer

    @on(InstanceEnsure)
    async def ensure(self, message: InstanceEnsure, envelope: Envelope) -> InstanceReady:
        """Return a standing instance, placed now if there is none.

        Another node's request is not passed on again: two nodes may see different members for a moment.
        """
        card, members = await self._cards.find(message.model_id), self._members()
        if isinstance(card.source, FolderSource):
            await self._hear_members()  # their records say which of them have it
        placer = placer_of(card.id, self._cards.holders(card, members) or {self.bus.node_id})
        if placer != self.bus.node_id and envelope.node == self.bus.node_id:
            work = InstanceEnsure(card.hub_name)
            return await self.bus.request(f"{placer}/node", work, InstanceReady, ENSURE_TIMEOUT_S)
        await self._hear_members()
        return InstanceReady(await self._placer.ensure(card))

    async def _hear_members(self) -> None:
        """Wait for the records of nodes that were linked a moment ago: what they hold need not be placed again."""
        with suppress(TimeoutError):
            async with asyncio.timeout(HEAR_TIMEOUT_S):
                while not self._instances.heard_all(self._linked_members):
                    self._record_came.clear()
                    await self._record_came.wait()

    def _grow_rings(self) -> None:
        """Grow the rings of the models that this node places."""
        if self._role is not Role.MEMBER:
            return
        for card in self._cards.all():
            holders = self._cards.holders(card, self._members()) if self._instances.newest(card.id) else ()
            if holders and placer_of(card.id, holders) == self.bus.node_id:
                self._placer.grow(card, self._cards.within(self._topology, card))

    def _members(self) -> set[str]:
        return placing_members(self._config, self._role, self._topology)

    async def _current_topology(self, card: ModelCard) -> Topology:
        """Return the nodes that can have a model, with this node's record as of now: what was just unloaded counts.

        Raises RequestError if no node has the engine that it needs.
        """
        await self._device.measured()
        topology = self._topology.with_node(self._own_record().record)
        self._cards.check_engine(card, topology)
        return topology

    @on(InstanceUnload)
    async def unload(self, message: InstanceUnload, envelope: Envelope) -> RequestDone:
        """End what stands of a model, wherever it was placed from."""
        if self._role is not Role.MEMBER:
            raise RequestError(FailureCode.FORBIDDEN, f"{self._config.name} is no member; unload the model on a member")
        await self._unloading.end_model(message.model_id)
        return RequestDone()

    # -- as a member

    @on(ShardLoad)
    async def load_shard(self, message: ShardLoad, envelope: Envelope) -> ShardLoaded:
        """Load a shard into an engine process of its own."""
        if self._role is not Role.MEMBER:
            raise RequestError(
                FailureCode.FORBIDDEN, f"{self._config.name} has the role {self._role} and holds no layers"
            )
        card = self._cards.of_shard(message)
        return await self._stages.load(message, card, self._nodes_here(), envelope.node)

    @on(InstanceJoin)
    async def join_ring(self, message: InstanceJoin, envelope: Envelope) -> InstanceJoined:
        """Give a loaded stage its place in the ring. The next record lists the instance."""
        await self._stages.join(message.instance)
        self._note_own_stages()
        return InstanceJoined(self._record.next_number)

    @on(ShardUnload)
    async def unload_shard(self, message: ShardUnload, envelope: Envelope) -> RequestDone:
        """Drain the stage of an instance, then end its process."""
        await self._stages.drain(message.instance_id, if_idle=message.if_idle)
        self._note_own_stages()
        return RequestDone()


if __name__ == "__main__":
    run_actor(NodeActor, NodeActor.name, fatal=CatalogueError)
