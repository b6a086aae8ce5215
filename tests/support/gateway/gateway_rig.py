"""A node around a real gateway process: a real hub, scripted actors, and a stage that sends a prepared text.

The text travels over the real data plane.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from actors.data_dir import open_folder
from bus.client import BusClient, RequestError
from bus.messages import (
    DownloadDone,
    DownloadWant,
    Fact,
    InstanceEnsure,
    InstanceReady,
    Message,
    ModelDescribe,
    Reply,
    RequestFailed,
    SessionCheck,
    TopologyGet,
    TopologyState,
    Work,
)
from bus.process import NAME_VARIABLE, RUN_DIR_VARIABLE
from bus.wire import Envelope
from cluster.capabilities import DeviceCapabilities
from cluster.failures import FailureCode
from cluster.placement import Instance, PlacedStage
from cluster.shard import Shard
from cluster.topology import NodeRecord, Topology
from common.config import NodeConfig, write_config
from models.tokenizers.tokenizer import Tokenizer
from tests.support.bus import hub_config, hub_of
from tests.support.gateway.text_stage import EPOCH, WITHIN_S, Script, TextStage
from tests.support.models import EOS_TOKEN_ID, write_tokenizer_files

ROOT = Path(__file__).parents[3]
NODE_ID = "00112233445566aa"
MODEL = "tiny"
CONTEXT_LENGTH = 512
POSITIONS = 4096

CARD = f"""
id = "{MODEL}"
name = "Tiny"
family = "llama"
aliases = ["tiny-chat"]
n_layers = 4
hidden_size = 64
n_heads = 4
n_kv_heads = 2
head_dim = 16
vocab_size = 320
context_length = {CONTEXT_LENGTH}
layer_bytes = 1000
embedding_bytes = 1000
size_bytes = 10000
source = {{ kind = "folder", path = "model" }}
defaults = {{ temperature = 0.25, top_p = 0.75 }}
"""


def eventually(what: Callable[[], bool], within_s: float = WITHIN_S) -> bool:
    """Return whether `what` becomes true in time."""
    deadline = time.monotonic() + within_s
    while not what():
        if time.monotonic() > deadline:
            return False
        threading.Event().wait(0.005)
    return True


Answers = dict[type[Message], Callable[[Work], Reply]]


class ActorThread(threading.Thread):
    """One actor on the bus that replies to each kind of work with `answers`; it can delay its replies, and publish."""

    def __init__(self, run_dir: Path, name: str, answers: Answers) -> None:
        super().__init__(name=name, daemon=True)
        self.answers = answers
        self.answering = threading.Event()
        self.answering.set()
        self.received: list[Message] = []
        self._run_dir = run_dir
        self._loop = asyncio.new_event_loop()
        self._bus: BusClient
        self._task: asyncio.Task[None]
        self._ready = threading.Event()

    def run(self) -> None:
        """Serve until `stop`."""
        try:
            self._loop.run_until_complete(self._main())
        finally:
            self._loop.close()

    def begin(self) -> None:
        """Start, and wait until it is connected."""
        self.start()
        assert self._ready.wait(WITHIN_S)

    def publish(self, fact: Fact) -> None:
        """Publish a fact on the actor's loop."""
        asyncio.run_coroutine_threadsafe(self._bus.publish(fact), self._loop).result(WITHIN_S)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Hold the actor's loop meanwhile, so that it does and says nothing."""
        thaws = threading.Event()
        self._loop.call_soon_threadsafe(thaws.wait, WITHIN_S)
        try:
            yield
        finally:
            thaws.set()

    def stop(self) -> None:
        """End the thread. Stopping it twice is no error."""
        if not self.is_alive():
            return
        self._loop.call_soon_threadsafe(self._task.cancel)
        self.join(WITHIN_S)

    async def _main(self) -> None:
        self._task = asyncio.ensure_future(self._serve())
        await asyncio.wait([self._task])

    async def _serve(self) -> None:
        self._bus = BusClient(self._run_dir, NODE_ID, self.name)
        await self._bus.start(["session."])
        self._ready.set()
        try:
            async with asyncio.TaskGroup() as serving:
                async for envelope in self._bus.deliveries():
                    assert envelope.message is not None
                    self.received.append(envelope.message)
                    serving.create_task(self._reply(envelope))
        finally:
            await self._bus.close()

    async def _reply(self, envelope: Envelope) -> None:
        message = envelope.message
        if isinstance(message, Work) and type(message) in self.answers:
            await asyncio.to_thread(self.answering.wait, WITHIN_S)
            await self._bus.send(envelope.header.sender, self._answer(message), cause=envelope.header.id)

    def _answer(self, message: Work) -> Reply:
        try:
            return self.answers[type(message)](message)
        except RequestError as error:
            return RequestFailed(error.code, error.message)


@dataclass
class Rig:
    """A running node with one stage, and the gateway's process."""

    url: str
    config: NodeConfig
    gateway: subprocess.Popen[bytes]
    stage: TextStage
    node: ActorThread
    download: ActorThread
    tokenizer: Tokenizer
    instance: Instance

    def set_script(self, text: str, *, end: bool = True, **how: object) -> None:
        """Have the stage send this text to every session from now on, then the end-of-text token if `end`."""
        tokens = self.tokenizer.encode(text) + [EOS_TOKEN_ID] * end
        self.stage.script = Script(tokens, **how)  # type: ignore[arg-type]  # the fields of Script

    def all_closed(self) -> bool:
        """Return whether every session that was opened was closed, each exactly once."""
        return eventually(lambda: sorted(self.stage.openings) == sorted(self.stage.closed))


def start_gateway(config: NodeConfig, log: Path, module: str = "gateway") -> subprocess.Popen[bytes]:
    """Start the gateway's process, which ends with the writing end of its standard input."""
    return start_actor(config, "gateway", log, module)


def start_actor(config: NodeConfig, name: str, log: Path, module: str) -> subprocess.Popen[bytes]:
    """Start an actor's process, which ends with the writing end of its standard input."""
    environment = {**os.environ, RUN_DIR_VARIABLE: config.run_dir, NAME_VARIABLE: name, "OMP_NUM_THREADS": "1"}
    with log.open("wb") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", module],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stderr=errors,
            env=environment,
            start_new_session=True,
        )


def stop_gateway(process: subprocess.Popen[bytes]) -> int:
    """Stop the gateway, or another actor, and return its exit status."""
    process.send_signal(signal.SIGTERM)
    status = process.wait(WITHIN_S)
    assert process.stdin is not None
    process.stdin.close()
    return status


@contextmanager
def running_rig(folder: Path, module: str = "gateway", **settings: object) -> Iterator[Rig]:
    """Run a gateway, which listens when the block begins, and everything around it. `folder` is the node's."""
    (folder / "node-id").write_text(NODE_ID)
    node_folder = open_folder(folder)
    run_dir = node_folder.run_dir
    config = make_config(run_dir, folder, **settings)
    threads: list[TextStage | ActorThread] = []
    try:
        with hub_of(hub_config(run_dir, NODE_ID, "rig", cluster="test")):
            stage = TextStage(run_dir)
            stage.start()
            threads.append(stage)
            instance = make_instance(stage.endpoints.get(timeout=WITHIN_S))
            node = ActorThread(run_dir, "node", {InstanceEnsure: lambda _: InstanceReady(instance)})
            done = DownloadDone(str(folder / "model"), str(folder / "model"))
            download = ActorThread(run_dir, "download", {DownloadWant: lambda _: done, ModelDescribe: _not_on_hub})
            state = TopologyState(_topology(), (instance,))
            topology = ActorThread(run_dir, "topology", {TopologyGet: lambda _: state})
            engine = ActorThread(run_dir, "engine-1", {SessionCheck: stage.states})
            for actor in (node, download, topology, engine):
                actor.begin()
                threads.append(actor)
            gateway = start_gateway(config, folder / "gateway.log", module)
            try:
                assert eventually(lambda: (run_dir / "api").exists()), (folder / "gateway.log").read_text()
                url = (run_dir / "api").read_text()
                tokenizer = Tokenizer.load(folder / "model")
                yield Rig(url, config, gateway, stage, node, download, tokenizer, instance)
            finally:
                stop_gateway(gateway)
            for thread in threads:
                thread.stop()
    finally:
        node_folder.close()


def make_config(run_dir: Path, folder: Path, **settings: object) -> NodeConfig:
    """Write a node's settings and the files that a gateway reads: one model card, its tokenizer and template."""
    cards = folder / "cards"
    (cards / "model").mkdir(parents=True, exist_ok=True)
    (folder / "model").mkdir(exist_ok=True)
    (cards / "tiny.toml").write_text(CARD)
    write_tokenizer_files(folder / "model")
    fixed: Mapping[str, object] = {
        "node_id": NODE_ID,
        "name": "rig",
        "incarnation": 1,
        "run_dir": str(run_dir),
        "data_dir": str(folder),
        "cache_dir": str(folder / "cache"),
        "cards_dir": str(cards),
    }
    config = msgspec.convert({**fixed, **settings}, NodeConfig)
    write_config(config)
    return config


def make_instance(endpoints: tuple[str, ...]) -> Instance:
    """Return the model on one stage."""
    shard, actor, why = Shard(MODEL, 0, 4, 4), f"{NODE_ID}/engine-1", "it was asked for"
    stage = PlacedStage(NODE_ID, shard, actor, "numpy", endpoints, POSITIONS, quantized_bits=8, why=why)
    return Instance("aabbccdd00112233", MODEL, EPOCH, (stage,))


def _not_on_hub(work: Work) -> Reply:
    raise RequestError(FailureCode.MODEL_NOT_FOUND, "the hub of these tests has no repositories; name another model")


def _topology() -> Topology:
    return Topology().with_node(NodeRecord(NODE_ID, "rig", 1, 1, DeviceCapabilities(engine="numpy")))
