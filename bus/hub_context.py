"""What the parts of one hub share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import zmq

from bus.messages import LocalFact
from bus.reactor import Reactor
from bus.sequencing import Sequencer
from common.config import NodeConfig


@dataclass(frozen=True, slots=True)
class HubContext:
    """Handed to every part of a hub. All of it is used on the hub's thread only.

    `counters` counts what was dropped or refused, by reason. `publish` publishes a fact to the node's own actors.
    """

    config: NodeConfig
    zmq_context: zmq.Context[zmq.Socket[bytes]]
    reactor: Reactor
    sequencer: Sequencer
    counters: Counter[str]
    publish: Callable[[LocalFact], None]
