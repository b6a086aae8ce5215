"""Settings, records and bus clients that stand in for actors, in tests of a node's actors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from bus.client import BusClient
from bus.messages import Reply, Work
from cluster.join_code import new_join_code
from cluster.roles import Role
from cluster.topology import NodeRecord
from common.config import NodeConfig
from common.private_files import write_private

A = "a" * 16
Answers = Mapping[type[Work], Callable[[Work], Reply]]
HOME = new_join_code("home")


def config_of(run_dir: Path, role: Role) -> NodeConfig:
    """Return the settings of node A with a code of this role and an engine that needs no measuring."""
    code_file = run_dir / f"{role}-code"
    write_private(code_file, HOME.invite(role).text())
    named = {"node_id": A, "name": "ada", "incarnation": 1, "engine": "numpy", "memory": 1 << 30}
    folders = dict.fromkeys(("run_dir", "data_dir", "cache_dir"), str(run_dir))
    return msgspec.convert({**named, **folders, "cluster": "home", "code_file": str(code_file)}, NodeConfig)


def record(node_id: str) -> NodeRecord:
    """Return the first record of a node."""
    return NodeRecord(node_id, f"name of {node_id}", 1, 1)


async def play(bus: BusClient, answers: Answers) -> None:
    """Reply to each kind of work until cancelled."""
    async for envelope in bus.deliveries():
        message = envelope.message
        if isinstance(message, Work) and type(message) in answers:
            await bus.send(envelope.header.sender, answers[type(message)](message), cause=envelope.header.id)
