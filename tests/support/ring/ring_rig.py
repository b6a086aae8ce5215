"""A node with a real gateway process and a ring of real engine processes, each of which a test may freeze.

The engines are synthetic. Other actors are scripted, as in `tests.support.gateway.gateway_rig`.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import msgspec

from actors.data_dir import open_folder
from bus.messages import (
    DownloadDone,
    DownloadWant,
    EngineLoad,
    InstanceEnsure,
    InstanceReady,
    InstanceUp,
    RequestDone,
    ShardLoaded,
    StageJoin,
    TopologyGet,
    TopologyState,
)
from cluster.placement import Instance, PlacedStage
from cluster.shard import Shard
from cluster.topology import RecordNumber, Topology
from common.config import NodeConfig
from tests.support.bus import client, hub_config, hub_of
from tests.support.gateway.gateway_rig import (
    MODEL,
    NODE_ID,
    ActorThread,
    Answers,
    eventually,
    make_config,
    start_actor,
    stop_gateway,
)
from tests.support.gateway.text_stage import EPOCH, WITHIN_S
from tests.support.models import TINY_VOCAB
from tests.support.ring.synthetic_engine import Model

INSTANCE, NUMBER = "aabbccdd00112233", RecordNumber(1, 1)
KV_BYTES = 1 << 20


@dataclass
class RingRig:
    """A running node: the API's URL, the processes, and the actor that stands in for the node actor."""

    url: str
    gateway: subprocess.Popen[bytes]
    engines: list[subprocess.Popen[bytes]]
    node: ActorThread
    instance: Instance


@contextmanager
def running_ring(folder: Path, stages: int, model: Model) -> Iterator[RingRig]:
    """Run a gateway and a ring of so many stages, each with the full cost of `model`. `folder` is the node's."""
    (folder / "node-id").write_text(NODE_ID)
    with ExitStack() as stack:
        node_folder = open_folder(folder)
        stack.callback(node_folder.close)
        config = make_config(node_folder.run_dir, folder)
        stack.enter_context(hub_of(hub_config(config.run_path, NODE_ID, "rig", cluster="test")))
        names = [f"engine-{number}" for number in range(1, stages + 1)]
        engines = [stack.enter_context(_process(config, name, "tests.support.ring.engine_process")) for name in names]
        instance = asyncio.run(_placed(config.run_path, names, _weights(folder, model)))
        done = DownloadDone(str(folder / "model"), str(folder / "model"))
        state = TopologyState(Topology(), (instance,))
        node = stack.enter_context(_actor(config, "node", {InstanceEnsure: lambda _: InstanceReady(instance)}))
        stack.enter_context(_actor(config, "download", {DownloadWant: lambda _: done}))
        stack.enter_context(_actor(config, "topology", {TopologyGet: lambda _: state}))
        gateway = stack.enter_context(_process(config, "gateway", "gateway"))
        assert eventually(lambda: (config.run_path / "api").exists()), (folder / "gateway.log").read_text()
        node.publish(InstanceUp(instance, (NUMBER,) * stages))
        yield RingRig((config.run_path / "api").read_text(), gateway, engines, node, instance)


@contextmanager
def frozen(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Freeze a process during the block."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def freeze_for(process: subprocess.Popen[bytes], seconds: float) -> float:
    """Freeze a process for so long, which is what the test is about; return when it thawed, in monotonic seconds."""
    with frozen(process):
        threading.Event().wait(seconds)
    return time.monotonic()


def _weights(folder: Path, model: Model) -> Path:
    path = folder / "synthetic.json"
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(model, vocab_size=TINY_VOCAB)))
    return path


@contextmanager
def _process(config: NodeConfig, name: str, module: str) -> Iterator[subprocess.Popen[bytes]]:
    process = start_actor(config, name, Path(config.data_dir) / f"{name}.log", module)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        stop_gateway(process)


@contextmanager
def _actor(config: NodeConfig, name: str, answers: Answers) -> Iterator[ActorThread]:
    actor = ActorThread(config.run_path, name, answers)
    actor.begin()
    try:
        yield actor
    finally:
        actor.stop()


async def _placed(run_dir: Path, names: Sequence[str], weights: Path) -> Instance:
    """Load the model's layers on the engines, join them to a ring, and return it."""
    n_layers = Model().n_layers
    cuts = [index * n_layers // len(names) for index in range(len(names) + 1)]
    shards = [Shard(MODEL, begin, end, n_layers) for begin, end in pairwise(cuts)]
    async with client(run_dir, NODE_ID, "placer") as bus:
        stages = []
        for name, shard in zip(names, shards, strict=True):
            load = EngineLoad("synthetic", INSTANCE, EPOCH, shard, str(weights), NODE_ID, NUMBER, KV_BYTES)
            loaded = await bus.request_at_start(name, load, ShardLoaded, WITHIN_S)
            stage = PlacedStage(NODE_ID, shard, loaded.actor, "synthetic", loaded.endpoints, loaded.positions)
            stages.append(stage)
        instance = Instance(INSTANCE, MODEL, EPOCH, tuple(stages), NODE_ID)
        for name in names:
            await bus.request(name, StageJoin(instance), RequestDone, WITHIN_S)
    return instance
