"""The record that a node publishes of itself: how it is numbered, and when it is due. Knows no stages."""

from __future__ import annotations

import time

import msgspec

from bus.client import BusClient
from bus.messages import NodeRecorded
from cluster.capabilities import DeviceCapabilities
from cluster.topology import NodeRecord, RecordNumber
from common.config import NodeConfig
from common.version import running_version

REPEAT_AFTER_S = 2.0


class OwnRecord:
    """Makes and publishes this node's record."""

    def __init__(self, config: NodeConfig, bus: BusClient) -> None:
        self.endpoint = ""  # of this node's hub
        self._config = config
        self._bus = bus
        self._sequence = 0
        self._published: NodeRecorded | None = None
        self._published_at = 0.0

    @property
    def number(self) -> RecordNumber:
        """The number of the newest record."""
        return RecordNumber(self._config.incarnation, self._sequence)

    @property
    def next_number(self) -> RecordNumber:
        """At most the number of the next record. It goes on rising if the node actor is started again."""
        sequence = max(self._sequence + 1, time.monotonic_ns() // 1_000_000)
        return RecordNumber(self._config.incarnation, sequence)

    def make(self, capabilities: DeviceCapabilities) -> NodeRecord:
        """Return a new record."""
        self._sequence = self.next_number.sequence
        config = self._config
        return NodeRecord(
            config.node_id,
            config.name,
            config.incarnation,
            self._sequence,
            capabilities,
            config.api(),
            self.endpoint,
            running_version(),
            config.machine,
        )

    async def publish(self, recorded: NodeRecorded) -> None:
        """Publish a record now."""
        self._published, self._published_at = recorded, time.monotonic()
        await self._bus.publish(recorded)

    async def publish_if_due(self, recorded: NodeRecorded) -> None:
        """Publish a record at once if it differs from the one before it, else every two seconds."""
        unchanged = self._published is not None and _nearly_equal(recorded, self._published)
        if not unchanged or time.monotonic() - self._published_at >= REPEAT_AFTER_S:
            await self.publish(recorded)


def _nearly_equal(one: NodeRecorded, other: NodeRecorded) -> bool:
    """Return whether two records differ in the sequence number, uses and less than a 32nd of the memory at most.

    Uses change with every chat and every second, and need not be known sooner than a record is repeated.
    """
    now, then = one.record.capabilities, other.record.capabilities
    if abs(now.memory_available - then.memory_available) > now.memory_total // 32:
        return False
    capabilities = msgspec.structs.replace(then, memory_available=now.memory_available)
    record = msgspec.structs.replace(other.record, sequence=one.record.sequence, capabilities=capabilities)
    return one == msgspec.structs.replace(other, record=record, uses=one.uses)
