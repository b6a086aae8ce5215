"""What a ring costs: tokens a second of N stages beside one, and the time of a hop beside raw libzmq."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from statistics import median

import zmq

from models.catalogue import DEFAULT_MODEL
from tests.bench.figures import Figure
from tests.bench.streams import Streams, Timed, node_config, place
from tests.rig_nodes import NodeProcess, nodes

STAGES = (1, 2, 4)
ROUNDS = 5
TOKENS = 48
PROMPT = tuple(range(100, 132))
PINGS = 2000
PING_BYTES = 64 + 576 * 4


def measure() -> list[Figure]:
    """`hop_us`, `decode_eff_2` and `decode_eff_4`: all rings stand at once and take turns."""
    with ExitStack() as stack:
        rings = {n: stack.enter_context(_ring(n)) for n in STAGES}
        for streams in rings.values():
            streams.generate(PROMPT, 8)
        rounds = [{n: rings[n].generate(PROMPT, TOKENS) for n in STAGES} for _ in range(ROUNDS)]
    rate = {n: median(_rate(turn[n]) for turn in rounds) for n in STAGES}
    hops = {n: median(_beside_compute_us(turn[n]) / n for turn in rounds) for n in STAGES}
    return [
        Figure(
            "hop_us",
            hops[2],
            "µs",
            "≤ 300",
            _raw_hop_us(),
            None,
            "2 stages: time of a token not spent in engines, a hop",
        ),
        *(
            Figure(
                f"decode_eff_{n}",
                rate[n] / rate[1],
                "ratio",
                goal,
                None,
                rate[1],
                f"{rate[n]:.1f} tok/s, one stage {rate[1]:.1f}",
            )
            for n, goal in ((2, "≥ 0.95"), (4, "≥ 0.90"))
        ),
    ]


@contextmanager
def _ring(stages: int) -> Iterator[Streams]:
    """A cluster of `stages` nodes with the default model over all of them."""
    with nodes(*(f"bench-{i}" for i in range(stages)), arguments=["--engine", "numpy", "--threads", "1"]) as started:
        _wait_for_all(started)
        config = node_config(started[0].data_dir)
        instance = place(config, DEFAULT_MODEL)
        assert len(instance.stages) == stages, f"{len(instance.stages)} stages where {stages} were wanted"
        streams = Streams(config, instance)
        try:
            yield streams
        finally:
            streams.close()


def _wait_for_all(started: list[NodeProcess]) -> None:
    deadline = time.monotonic() + 30
    while len(started[0].get("/v1/topology")["nodes"]) < len(started):
        assert time.monotonic() < deadline, "the nodes did not find each other"


def _rate(tokens: list[Timed]) -> float:
    return (len(tokens) - 1) / ((tokens[-1].at_ns - tokens[0].at_ns) / 1e9)


def _beside_compute_us(tokens: list[Timed]) -> float:
    gaps = [(b.at_ns - a.at_ns - b.compute_ns) / 1000 for a, b in pairwise(tokens)]
    return median(gaps)


def _raw_hop_us() -> float:
    """Half a round trip of a header and one row between two processes, blocking sockets over ipc, median."""
    child = subprocess.Popen([sys.executable, "-c", _ECHO], stdout=subprocess.PIPE, text=True)
    context = zmq.Context()
    try:
        assert child.stdout is not None
        dealer = context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.RCVTIMEO, 5000)
        dealer.connect(child.stdout.readline().strip())
        payload = [bytes(64), bytes(PING_BYTES - 64)]
        times = []
        for _ in range(PINGS):
            begun = time.perf_counter_ns()
            dealer.send_multipart(payload)
            dealer.recv_multipart()
            times.append(time.perf_counter_ns() - begun)
        return median(times) / 2000
    finally:
        child.kill()
        child.wait()
        context.destroy(linger=0)


_ECHO = """
import tempfile, zmq
router = zmq.Context().socket(zmq.ROUTER)
endpoint = f"ipc://{tempfile.mkdtemp()}/echo"
router.bind(endpoint)
print(endpoint, flush=True)
while True:
    router.send_multipart(router.recv_multipart())
"""
