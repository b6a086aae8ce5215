"""Rings of synthetic stages, each in a process of its own, with a gateway without text at the first.

Starts and ends the processes that `tests.rig_synthetic` describes, and asks them what they did.
"""

from __future__ import annotations

import select
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import msgspec
import numpy as np

from cluster.placement import Instance, Stage
from cluster.sampling import SamplingParams
from cluster.shard import Shard, whole
from engines.engine import Chunk
from engines.sampling import sample
from tests.bench.streams import Streams
from tests.rig_bus import ROOT, in_time, run_folder
from tests.rig_synthetic import WITHIN_S, Join, Look, Ready, Seen, Settings
from tests.rig_synthetic_engine import Model, SyntheticEngine, SyntheticWeights

EPOCH = 11
PLENTY = 1 << 20  # positions

T = TypeVar("T")


class StageProcess:
    """One hosted stage; a context manager. Every answer has a deadline."""

    def __init__(self, settings: Settings) -> None:
        command = [sys.executable, "-m", "tests.rig_synthetic", msgspec.json.encode(settings).decode()]
        self.shard = settings.shard
        self.actor = f"n/{settings.name}"
        self._child = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ready(self) -> Stage:
        """Wait until it is loaded and listens."""
        ready = self._answer(Ready)
        return Stage(
            "n", self.shard, self.actor, "synthetic", ready.endpoints, ready.positions, SyntheticEngine.exact_rows
        )

    def ask(self, question: Join | Look) -> Seen:
        """Its answer."""
        assert self._child.stdin is not None
        self._child.stdin.write(msgspec.json.encode(question) + b"\n")
        self._child.stdin.flush()
        return self._answer(Seen)

    def _answer(self, kind: type[T]) -> T:
        assert self._child.stdout is not None
        readable, _, _ = select.select([self._child.stdout], [], [], WITHIN_S)
        line = self._child.stdout.readline() if readable else b""
        assert line, f"{self.actor} ended or said nothing for {WITHIN_S:g} s"
        return msgspec.json.decode(line, type=kind)

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
class SyntheticRing:
    """A ring that stands, and the sessions at it."""

    processes: Sequence[StageProcess]
    streams: Streams
    model: Model

    def look(self, *, journal: bool = False) -> list[Seen]:
        """Each stage as it is now."""
        return [process.ask(Look(journal)) for process in self.processes]

    def comes_to(self, state: Callable[[Seen], bool]) -> bool:
        """Whether in time every stage is in this state."""
        return in_time(lambda: all(state(stage) for stage in self.look()), WITHIN_S)

    def all_free(self) -> bool:
        """Whether in time no stage holds a session or a slot."""
        return self.comes_to(lambda stage: not stage.sessions and not stage.slots)


def same(instance: Instance) -> Instance:
    """The instance as it is."""
    return instance


@contextmanager
def synthetic_ring(
    model: Model,
    stages: int,
    *,
    last: Model | None = None,
    positions: int = PLENTY,
    seen_as: Callable[[Instance], Instance] = same,
) -> Iterator[SyntheticRing]:
    """A ring over `stages` processes, each with its part of the layers and the whole cost of `model`, or of `last`.

    Its memory holds `positions`. The stages know one another as `seen_as` says. At the end all sessions are closed,
    and AssertionError is raised where a stage keeps one.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(run_folder())
        models = [model] * (stages - 1) + [last or model]
        settings = [_settings(folder, index, models, positions) for index in range(stages)]
        processes = [stack.enter_context(StageProcess(one)) for one in settings]
        instance = seen_as(Instance("i", "synthetic", EPOCH, tuple(process.ready() for process in processes)))
        for process in processes:
            process.ask(Join(instance, process.actor))
        streams = Streams(folder, instance)
        stack.callback(streams.close)
        ring = SyntheticRing(processes, streams, model)
        yield ring
        streams.end_all()
        assert ring.all_free(), f"a session left something behind: {ring.look()}"


def _settings(folder: Path, index: int, models: Sequence[Model], positions: int) -> Settings:
    """Of one stage, whose model is written to a file."""
    layers = models[index].n_layers
    begin, end = (at * layers // len(models) for at in (index, index + 1))
    path = folder / f"model-{index}.json"
    path.write_bytes(msgspec.json.encode(models[index]))
    return Settings(str(folder), f"stage-{index}", Shard("synthetic", begin, end, layers), EPOCH, str(path), positions)


def expected_tokens(model: Model, prompt: Sequence[int], count: int) -> list[int]:
    """What the whole model says after a prompt: one engine, here, a token a call, at no cost."""
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
