"""What the supervisor of a node shows its owner."""

from __future__ import annotations

from typing import Protocol

from bus.messages import HubState
from cluster.capabilities import DeviceCapabilities
from common.config import NodeConfig


class Screen(Protocol):
    """What the supervisor shows the owner of a node."""

    def starting(self, text: str) -> None:
        """Show that the node is not ready yet."""

    def ready(self, config: NodeConfig, hub: HubState, capabilities: DeviceCapabilities) -> None:
        """Show that the gateway listens and the engine is chosen."""

    def progress(self, text: str) -> None:
        """Show a line that replaces the line of progress before it."""

    def event(self, text: str) -> None:
        """Show a line that stays: a node came or went, a process died."""
