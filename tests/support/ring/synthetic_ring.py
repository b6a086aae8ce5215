"""Rings of synthetic stages, each in a process of its own, with a gateway without text at the first.

Starts and ends the processes of `tests.support.ring.synthetic_stage`, and gets their counts.
"""

from __future__ import annotations

import select
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeVar

import msgspec
import numpy as np

from bus.dataplane.access import LOCAL
from cluster.placement import Instance, PlacedStage
from cluster.sampling import SamplingParams
from cluster.shard import Shard, whole
from engines.engine import Chunk
from engines.sampler import sample
from tests.bench.streams import Streams
from tests.support.bus import ROOT, in_time, run_folder
from tests.support.network.dataplane import new_nodes, only_tcp, without_keys
from tests.support.ring.synthetic_engine import HASH_BYTES, Model, SyntheticEngine, SyntheticWeights
from tests.support.ring.synthetic_stage import WITHIN_S, Join, Look, Ready, Seen, Settings

Over = Literal["ipc", "curve", "plain"]
"""How stages are connected: within a machine, between machines, and, for comparison, between machines without keys."""

EPOCH = 11
PLENTY = 1 << 20  # positions

T = TypeVar("T")


class StageProcess:
    """One hosted stage, as a context manager. Every response has a deadline."""

    def __init__(self, settings: Settings) -> None:
        command = [sys.executable, "-m", "tests.support.ring.synthetic_stage", msgspec.json.encode(settings).decode()]
        self._settings = settings
        self.actor = f"n/{settings.name}"
        self._child = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ready(self) -> PlacedStage:
        """Wait until it is loaded and listens, and return it as its placer knows it."""
        ready, node = self._answer(Ready), self._settings.node
        return PlacedStage(
            node.pair.node_id if node else "n",
            self._settings.shard,
            self.actor,
            self._settings.engine,
            only_tcp(ready.endpoints) if node else ready.endpoints,
            ready.positions,
            ready.exact_rows,
        )

    def request(self, request: Join | Look) -> Seen:
        """Send a request, and return the response."""
        assert self._child.stdin is not None
        self._child.stdin.write(msgspec.json.encode(request) + b"\n")
        self._child.stdin.flush()
        return self._answer(Seen)

    def _answer(self, kind: type[T]) -> T:
        assert self._child.stdout is not None
        readable, _, _ = select.select([self._child.stdout], [], [], WITHIN_S)
        line = self._child.stdout.readline() if readable else b""
        assert line, f"{self.actor} ended or sent nothing for {WITHIN_S:g} s"
        return msgspec.json.decode(line, type=kind)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._child.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._child.communicate(timeout=WITHIN_S)  # closes the child's input, which ends it
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.communicate(timeout=WITHIN_S)
            raise


@dataclass(frozen=True, slots=True)
class HostedRing:
    """A running ring, and the sessions on it."""

    processes: Sequence[StageProcess]
    streams: Streams

    def look(self, *, journal: bool = False) -> list[Seen]:
        """Return each stage as it is now."""
        return [process.request(Look(journal)) for process in self.processes]

    def comes_to(self, state: Callable[[Seen], bool]) -> bool:
        """Return whether every stage reaches this state in time."""
        return in_time(lambda: all(state(stage) for stage in self.look()), WITHIN_S)

    def all_free(self) -> bool:
        """Return whether every stage releases all sessions and slots in time."""
        return self.comes_to(lambda stage: not stage.sessions and not stage.slots)


@dataclass(frozen=True, slots=True)
class SyntheticRing(HostedRing):
    """A ring of a synthetic model."""

    model: Model


def same(instance: Instance) -> Instance:
    """Return the instance as it is."""
    return instance


@contextmanager
def synthetic_ring(
    model: Model,
    stages: int,
    *,
    last: Model | None = None,
    positions: int = PLENTY,
    over: Over = "ipc",
    seen_as: Callable[[Instance], Instance] = same,
) -> Iterator[SyntheticRing]:
    """Run a ring over `stages` processes, each with its part of the layers and the full cost of `model`, or of `last`.

    Its memory holds `positions`. The stages join the instance that `seen_as` returns. At the end all sessions are
    closed. Raises AssertionError if a stage keeps one.
    """
    with run_folder() as folder:
        models = [model] * (stages - 1) + [last or model]
        settings = [_settings(folder, index, models, positions) for index in range(stages)]
        with hosted_ring(folder, settings, over, seen_as) as ring:
            yield SyntheticRing(ring.processes, ring.streams, model)


@contextmanager
def hosted_ring(
    folder: Path, settings: Sequence[Settings], over: Over = "ipc", seen_as: Callable[[Instance], Instance] = same
) -> Iterator[HostedRing]:
    """Run a ring of these stages. Over anything but ipc, each stage and the gateway is on a node of its own."""
    plain = over == "plain"
    nodes = new_nodes(len(settings) + 1, plain=plain)
    if over != "ipc":
        settings = [msgspec.structs.replace(one, node=node) for one, node in zip(settings, nodes, strict=False)]
    with ExitStack() as stack:
        processes = [stack.enter_context(StageProcess(one)) for one in settings]
        placed = tuple(process.ready() for process in processes)
        instance = seen_as(Instance("i", placed[0].shard.model_id, EPOCH, placed))
        for process in processes:
            process.request(Join(instance, process.actor))
        with without_keys() if plain else nullcontext():
            streams = Streams(folder, instance, nodes[-1].access() if over != "ipc" else LOCAL)
            stack.callback(streams.close)
            if plain:
                streams.generate((5,), 2)  # opens every connection
        ring = HostedRing(processes, streams)
        yield ring
        streams.end_all()
        assert ring.all_free(), f"a session left something behind: {ring.look()}"


def _settings(folder: Path, index: int, models: Sequence[Model], positions: int) -> Settings:
    """Return the settings of one stage; its model is written to a file."""
    layers = models[index].n_layers
    begin, end = (at * layers // len(models) for at in (index, index + 1))
    path = folder / f"model-{index}.json"
    path.write_bytes(msgspec.json.encode(models[index]))
    shard = Shard("synthetic", begin, end, layers)
    return Settings(str(folder), f"stage-{index}", shard, EPOCH, str(path), positions * HASH_BYTES * len(shard.layers))


def expected_tokens(model: Model, prompt: Sequence[int], count: int) -> list[int]:
    """Return what the whole model generates after a prompt: with one engine here, a token per call, at no cost."""
    engine = SyntheticEngine()
    engine.read(whole("synthetic", model.n_layers), SyntheticWeights(msgspec.structs.replace(model, **_FREE)))
    tokens: list[int] = []
    position, inputs = 0, list(prompt)
    while len(tokens) < count:
        (logits,) = engine.forward([Chunk(0, position, np.array(inputs, np.int32), 1)])
        position += len(inputs)
        inputs = [sample(logits[0], SamplingParams(temperature=0.0), position)]
        tokens += inputs
    return tokens


_FREE = {"call_ms": 0.0, "row_ms": 0.0, "prompt_row_ms": 0.0}
