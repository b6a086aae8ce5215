"""The node's own voice: its record, the stages that it holds, and its turn as the placer of a model.

Which node places a model follows from the model's id, so every node that is asked passes the question to the same
one. What other nodes do is known from their facts only.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress

import msgspec

from actors.device import Device, machine_id
from actors.placer import Placer
from bus.actor import Actor, every, on
from bus.client import BusClient, RequestError
from bus.messages import (
    ActorDown,
    ActorStart,
    ActorStarted,
    ActorStop,
    DownloadDone,
    DownloadWant,
    EngineLoad,
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
    StageDrain,
    Status,
    TopologyChanged,
    TopologyGet,
    TopologyState,
)
from bus.net.identity import own_role
from bus.process import run_actor
from bus.wire import Envelope
from cluster.failures import FailureCode
from cluster.instances import Instances
from cluster.kv_budget import KvBudget, KvRequest
from cluster.partitioning import RingMemoryWeightedPartitioningStrategy
from cluster.placement import Instance, placer_of
from cluster.roles import Role
from cluster.topology import NodeRecord, Topology
from common.config import NodeConfig
from common.version import running_version
from engines.engine import MAX_SLOTS
from models.card import ModelCard
from models.catalogue import Catalogue
from models.errors import CatalogueError, UnknownModel

logger = logging.getLogger(__name__)

LOAD_WITHIN_S = 3600.0  # a first download may take that long
DRAIN_WITHIN_S = 600.0
ENGINE_WITHIN_S = 30.0
SHORT_S = 10.0
SAY_AGAIN_S = 2.0


class NodeActor(Actor):
    """Serves `instance.ensure` as a placer and `shard.load` as a member."""

    name = "node"

    def __init__(self, config: NodeConfig, bus: BusClient) -> None:
        super().__init__(bus)
        self._config = config
        self._catalogue = Catalogue.load(config.cards_path)
        self._machine = Device(config)
        self._machine_id = machine_id()
        self._role = own_role(config)
        self._topology = Topology()
        self._instances = Instances()
        self._placer = Placer(bus, self._instances, RingMemoryWeightedPartitioningStrategy(), self._look)
        self._stages: dict[str, str] = {}  # instance id -> the name of our engine
        self._kv = KvBudget()
        self._sequence = 0
        self._said: NodeRecorded | None = None
        self._said_at = 0.0
        self._endpoint = ""

    async def started(self) -> None:
        """Measure in the background: only a shard has to wait for it."""
        self._machine.begin()
        self._endpoint = (await self.bus.request("hub", HubDescribe(), HubState, SHORT_S)).endpoint
        state = await self.bus.request_at_start("topology", TopologyGet(), TopologyState, SHORT_S)
        self._topology = state.topology
        for instance in state.instances:
            self._instances.stands(instance)

    async def stopping(self) -> None:
        """End the measuring, if it still runs."""
        await self._machine.end()

    # -- what is known

    @every(0.25)
    async def record(self) -> None:
        """Say what this node is: at once when it changes, else every two seconds."""
        own = NodeRecorded(self._own_record(), self._instances.placed_by(self.bus.node_id))
        if time.monotonic() - self._said_at < SAY_AGAIN_S and _same(own, self._said):
            return
        await self._say(own)

    async def _say(self, own: NodeRecorded) -> None:
        self._said, self._said_at = own, time.monotonic()
        await self.bus.publish(own)

    @on(TopologyChanged)
    async def topology_changed(self, message: TopologyChanged, envelope: Envelope) -> None:
        """The graph as our own topology actor sees it."""
        self._topology = message.topology

    @on(NodeRecorded)
    async def recorded(self, message: NodeRecorded, envelope: Envelope) -> None:
        """What another node placed."""
        if envelope.node not in (self.bus.node_id, ""):
            self._instances.recorded(envelope.node, message.instances)

    @on(InstanceUp)
    async def instance_up(self, message: InstanceUp, envelope: Envelope) -> None:
        """A node placed an instance."""
        self._instances.stands(message.instance)

    @on(InstanceDown)
    async def instance_down(self, message: InstanceDown, envelope: Envelope) -> None:
        """Forget it, and end our stage of it."""
        self._instances.fell(message.instance_id)
        await self._end_stage(message.instance_id)

    @on(PeerUp)
    async def peer_up(self, message: PeerUp, envelope: Envelope) -> None:
        """Introduce ourselves at once."""
        await self._say(NodeRecorded(self._own_record(), self._instances.placed_by(self.bus.node_id)))

    @on(PeerDown)
    async def peer_down(self, message: PeerDown, envelope: Envelope) -> None:
        """Every instance that ran over the lost node is down."""
        for instance in self._instances.with_node(message.node_id):
            await self._declare_down(instance, f"node {message.node_id} is gone ({message.reason})")

    @on(ActorDown)
    async def actor_down(self, message: ActorDown, envelope: Envelope) -> None:
        """One of our engines died, and the instance with it."""
        if envelope.node != self.bus.node_id:
            return
        for instance_id in [i for i, actor in self._stages.items() if actor == message.name]:
            self._forget_stage(instance_id)
            if instance := self._instances.with_id(instance_id):
                await self._declare_down(instance, f"{message.name} on {self._config.name} ended ({message.reason})")

    async def _declare_down(self, instance: Instance, reason: str) -> None:
        logger.warning("instance %s of %s is down: %s", instance.instance_id, instance.model_id, reason)
        self._instances.fell(instance.instance_id)
        await self._end_stage(instance.instance_id)
        await self.bus.publish(InstanceDown(instance.instance_id, instance.epoch, reason))

    def _own_record(self) -> NodeRecord:
        self._sequence += 1
        config = self._config
        return NodeRecord(
            config.node_id,
            config.name,
            config.incarnation,
            self._sequence,
            self._machine.now(self._nodes_here()),
            config.api(),
            self._endpoint,
            running_version(),
            self._machine_id,
        )

    def _nodes_here(self) -> int:
        return max(self._topology.on_machine(self._machine_id), 1)

    async def _ask_topology(self) -> TopologyState:
        state = await self.bus.request("topology", TopologyGet(), TopologyState, SHORT_S)
        self._topology = state.topology
        return state

    async def _look(self) -> Topology:
        """The topology with our own record as of now, so that what was just unloaded counts."""
        await self._machine.measured()
        await self._ask_topology()
        return self._topology.with_node(self._own_record())

    # -- as a placer

    @on(InstanceEnsure)
    async def ensure(self, message: InstanceEnsure, envelope: Envelope) -> InstanceReady:
        """A standing instance, placed now if need be. Passed on at most once: two nodes may not agree who is there."""
        card = self._card(message.model_id)
        placer = placer_of(card.id, self._members())
        if placer != self.bus.node_id and envelope.node == self.bus.node_id:
            return await self.bus.request(f"{placer}/node", InstanceEnsure(card.id), InstanceReady, LOAD_WITHIN_S)
        return InstanceReady(await self._placer.ensure(card))

    def _members(self) -> set[str]:
        """The nodes that may place. Raises RequestError where this one may not ask, or nobody is there."""
        own = {self.bus.node_id} if self._role is Role.MEMBER else set()
        if self._role is Role.OBSERVER:
            raise RequestError(
                FailureCode.FORBIDDEN, "this node only observes; chat through another, or join with a gateway's code"
            )
        if not (members := {*self._topology.node_ids, *own}):
            raise RequestError(
                FailureCode.NO_MEMBER, f"no member of cluster {self._config.cluster} is linked to this gateway yet"
            )
        return members

    def _card(self, model_id: str) -> ModelCard:
        try:
            return self._catalogue.get(model_id)
        except UnknownModel as error:
            raise RequestError(FailureCode.MODEL_NOT_FOUND, str(error)) from None

    # -- as a member

    @on(ShardLoad)
    async def load_shard(self, message: ShardLoad, envelope: Envelope) -> ShardLoaded:
        """Fetch the shard's files and start an engine for it meanwhile, then load."""
        if self._role is not Role.MEMBER:
            raise RequestError(
                FailureCode.FORBIDDEN, f"{self._config.name} has the role {self._role} and holds no layers"
            )
        machine, card = await self._machine.measured(), self._card(message.shard.model_id)
        files, engine = await self._files_and_engine(message)
        self._stages[message.instance_id] = engine
        await self.bus.publish(Status(message.shard.model_id, f"loading {message.shard} on {self._config.name}"))
        try:
            kv_bytes, precision = self._promise(message, card), self._config.precision
            load = EngineLoad(machine.engine, message.epoch, message.shard, files, kv_bytes, precision)
            loaded = await self.bus.request(engine, load, ShardLoaded, LOAD_WITHIN_S)
        except BaseException:
            await asyncio.shield(self._end_stage(message.instance_id))
            raise
        self._kv.loaded(message.instance_id)
        return loaded

    def _promise(self, message: ShardLoad, card: ModelCard) -> int:
        """The bytes that our stage may use for keys and values; at most what MAX_SLOTS whole contexts take."""
        shard, limit = message.shard, self._config.kv_memory
        most = card.kv_bytes(shard, MAX_SLOTS * card.context_length)
        wish = KvRequest(card.shard_bytes(shard), card.least_kv_bytes(shard), most, limit)
        offer = self._machine.now(self._nodes_here()).memory_available
        return self._kv.reserve(message.instance_id, card.id, wish, offer)

    async def _files_and_engine(self, message: ShardLoad) -> tuple[str, str]:
        """The path of the shard's files and the name of a fresh engine; where one fails the other is given back."""
        want = DownloadWant(message.shard.model_id, message.shard)
        start = ActorStart(self._machine.threads(self._nodes_here()))
        starting = asyncio.create_task(self.bus.request("supervisor", start, ActorStarted, ENGINE_WITHIN_S))
        try:
            files = await self.bus.request("download", want, DownloadDone, LOAD_WITHIN_S)
            return files.path, (await asyncio.shield(starting)).name
        except BaseException:
            await asyncio.shield(self._give_back(starting))
            raise

    async def _give_back(self, starting: asyncio.Task[ActorStarted]) -> None:
        """End an engine that is not wanted any more, once it has started, if it does."""
        with suppress(RequestError):
            await self._stop_engine((await starting).name)

    @on(ShardUnload)
    async def unload_shard(self, message: ShardUnload, envelope: Envelope) -> RequestDone:
        """Drain our stage of an instance, then end its process."""
        if actor := self._stages.get(message.instance_id):
            await self.bus.request(actor, StageDrain(), RequestDone, DRAIN_WITHIN_S)
            await self._end_stage(message.instance_id)
        return RequestDone()

    async def _end_stage(self, instance_id: str) -> None:
        if actor := self._forget_stage(instance_id):
            await self._stop_engine(actor)

    def _forget_stage(self, instance_id: str) -> str | None:
        self._kv.release(instance_id)
        return self._stages.pop(instance_id, None)

    async def _stop_engine(self, actor: str) -> None:
        await self.bus.request("supervisor", ActorStop(actor), RequestDone, SHORT_S)


def _same(record: NodeRecorded, said: NodeRecorded | None) -> bool:
    """Whether nothing differs but the sequence number and less than a 32nd of the memory."""
    if said is None:
        return False
    now, then = record.record.capabilities, said.record.capabilities
    if abs(now.memory_available - then.memory_available) > now.memory_total // 32:
        return False
    known = msgspec.structs.replace(then, memory_available=now.memory_available)
    again = msgspec.structs.replace(said.record, sequence=record.record.sequence, capabilities=known)
    return record == msgspec.structs.replace(said, record=again)


if __name__ == "__main__":
    run_actor(NodeActor, NodeActor.name, hopeless=CatalogueError)
