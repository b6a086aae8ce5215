"""exobus nodes as a user starts them, with each engine pinned to a core, and the rates of their streams."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from statistics import median

import numpy as np

from models.catalogue import DEFAULT_MODEL
from tests.bench.machine import pin_busiest
from tests.bench.streams import Streams, Timed, ensure_instance
from tests.support.nodes import NodeProcess, nodes

VOCAB = 49_000
ENGINE = "actors.engine_actor"
MEET_TIMEOUT_S = 30.0


class Ours:
    """The default model on a ring of `stages` nodes of one engine thread each. Rates are tokens per second.

    Prompts are random ids and never the same twice, so no cache contains any of them.
    """

    def __init__(self, streams: Streams, seed: int) -> None:
        self._streams = streams
        self._random = np.random.default_rng(seed)

    def prefill_rate(self, prompt: int) -> float:
        """Return a prompt's tokens by the time from sending it to receiving the first token."""
        tokens = self._prompt(prompt)
        begun = time.monotonic_ns()
        (first,) = self._streams.generate(tokens, 1)
        return prompt / ((first.at_ns - begun) / 1e9)

    def decode_rate(self, prompt: int, tokens: int) -> float:
        """Measure one stream, from its first token to its last."""
        came = self._streams.generate(self._prompt(prompt), tokens)
        return (len(came) - 1) / _seconds(came[0], came[-1])

    def streams_rate(self, streams: int, prompt: int, tokens: int) -> float:
        """Measure several streams, all tokens together, while all of them decode."""
        came = self._streams.generate_side_by_side([self._prompt(prompt) for _ in range(streams)], tokens)
        begun = max((stream[1] for stream in came), key=lambda token: token.at_ns)
        ended = min((stream[-1] for stream in came), key=lambda token: token.at_ns)
        counted = sum(begun.at_ns < token.at_ns <= ended.at_ns for stream in came for token in stream)
        return counted / _seconds(begun, ended)

    def beside_compute_us(self, prompt: int, tokens: int) -> float:
        """Return the microseconds per token that were not spent in engines: the median of one stream."""
        came = self._streams.generate(self._prompt(prompt), tokens)
        return median((b.at_ns - a.at_ns - b.compute_ns) / 1000 for a, b in pairwise(came))

    def _prompt(self, length: int) -> tuple[int, ...]:
        return tuple(self._random.integers(1000, VOCAB, length).tolist())


@contextmanager
def ring_of_nodes(stages: int, precision: str, engine: str = "onnx") -> Iterator[tuple[list[NodeProcess], Streams]]:
    """Run a ring of so many nodes, with one engine process of one thread each."""
    arguments = ["--engine", engine, "--threads", "1"]
    names = [f"{precision}-{stage}" for stage in range(stages)]
    with nodes(*names, arguments=arguments, environment={"EXOBUS_PRECISION": precision}) as started:
        wait_for_all(started)
        config = started[0].config
        instance = ensure_instance(config, DEFAULT_MODEL)
        assert len(instance.stages) == stages, f"{len(instance.stages)} stages instead of {stages}"
        streams = Streams(config.run_path, instance)
        try:
            yield started, streams
        finally:
            streams.close()


@contextmanager
def ring(stages: int, precision: str, engine: str = "onnx") -> Iterator[Ours]:
    """Run such a ring and warm it up. Each engine's thread has a core of its own if there are enough."""
    with ring_of_nodes(stages, precision, engine) as (started, streams):
        ours = Ours(streams, seed=os.getpid() + stages)
        ours.decode_rate(32, 8)
        for core, node in enumerate(started):
            _pin_engine(node, core)
        yield ours


def wait_for_all(started: list[NodeProcess]) -> None:
    """Wait until the first node knows the others. Fails after MEET_TIMEOUT_S."""
    deadline = time.monotonic() + MEET_TIMEOUT_S
    while len(started[0].get("/v1/topology")["nodes"]) < len(started):
        assert time.monotonic() < deadline, "the nodes did not find each other"
        time.sleep(0.05)


def _pin_engine(node: NodeProcess, core: int) -> None:
    for process in node.children():
        if ENGINE in process.cmdline():
            pin_busiest(process.pid, core)


def _seconds(begun: Timed, ended: Timed) -> float:
    return (ended.at_ns - begun.at_ns) / 1e9
