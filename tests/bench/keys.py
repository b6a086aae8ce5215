"""The cost of keys: hops, a real ring and bulk transfer between two machines, with CURVE and without, in one run.

Every stage is on a node of its own, reached over tcp. Only this benchmark can run without keys.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from itertools import pairwise
from pathlib import Path
from statistics import median
from unittest.mock import patch

import numpy as np
import zmq

from bus.net.keys import new_key_pair
from bus.net.sockets import DATA_BYTES, DATA_MARK, CurveServer, bind_tcp, connect, open_socket
from bus.net.zap import ZapHandler
from cluster.shard import Shard
from models.catalogue import DEFAULT_MODEL, Catalogue
from tests.bench.figures import Figure
from tests.bench.machine import pin_busiest
from tests.bench.ours import VOCAB
from tests.bench.raw_hop import raw_hop_us
from tests.bench.streams import Streams, Timed
from tests.support.bus import run_folder
from tests.support.models import default_model_path
from tests.support.network.dataplane import without_keys
from tests.support.ring.synthetic_engine import Model
from tests.support.ring.synthetic_ring import EPOCH, HostedRing, Over, hosted_ring, synthetic_ring
from tests.support.ring.synthetic_stage import Settings

HIDDEN = 4096  # of a model of 8 billion parameters: 8 KiB a row
TOKEN_MS = 10.0
TOKENS = 60
ROUNDS = 7
HOPS = 2
KV_BYTES = 1 << 28
BULK_BYTES = 256 << 10
BULK_COUNT = 400
WITHIN_MS = 10_000
TRANSPORTS: tuple[Over, ...] = ("ipc", "plain", "curve")


def measure() -> list[Figure]:
    """Measure hops of 8 KiB, decoding on two real stages, and bulk transfer."""
    return [*_hops(), *_rings(), _bulk()]


def _hops() -> list[Figure]:
    """Measure a hop over each transport in turn, as half of what a token takes longer on two stages than on one."""
    with ExitStack() as stack:
        model = Model(call_ms=TOKEN_MS / HOPS, hidden_size=HIDDEN, dtype="float16")
        one = stack.enter_context(synthetic_ring(_whole(model), 1))
        two = {way: stack.enter_context(synthetic_ring(model, 2, over=way)) for way in TRANSPORTS}
        rounds = [
            [_gap_us(ring.streams.generate((5, at), TOKENS)) for ring in (one, *two.values())] for at in range(ROUNDS)
        ]
    whole, *split = (median(column) for column in zip(*rounds, strict=True))
    hops = {way: (gap - whole) / HOPS for way, gap in zip(TRANSPORTS, split, strict=True)}
    floors = {way: raw_hop_us(2 * HIDDEN, pause_ms=TOKEN_MS / HOPS, over=way) for way in ("plain", "curve")}
    added = hops["curve"] - hops["plain"]
    note = f"like hop_us, for rows of 8 KiB; over ipc {hops['ipc']:.0f} µs"
    return [
        Figure("hop_tcp_us", hops["plain"], "µs", "", floors["plain"], note=f"{note}; over tcp without keys"),
        Figure(
            "hop_curve_us", hops["curve"], "µs", "≤ 180", floors["curve"], hops["plain"],
            note=f"{note}; over tcp as between machines: keys add {added:.0f} µs",
        ),
    ]  # fmt: skip


def _whole(model: Model) -> Model:
    """Return a model that is as slow on one stage as this one on two."""
    return Model(call_ms=TOKEN_MS, hidden_size=model.hidden_size, dtype=model.dtype)


def _gap_us(tokens: Sequence[Timed]) -> float:
    return median((b.at_ns - a.at_ns) / 1000 for a, b in pairwise(tokens[1:]))


def _rings() -> list[Figure]:
    """Compare the default model in one process with two processes over tcp, with keys and without."""
    random = np.random.default_rng(os.getpid())
    with ExitStack() as stack:
        one = stack.enter_context(_real_ring(1, "ipc"))
        plain, curve = (stack.enter_context(_real_ring(2, way)) for way in ("plain", "curve"))
        rounds = [[_rate(ring.streams, random) for ring in (one, plain, curve)] for _ in range(ROUNDS)]
    alone, without, keyed = (median(column) for column in zip(*rounds, strict=True))
    note = f"one stream, 2 stages over tcp beside 1: {{}} and {alone:.1f} tok/s"
    return [
        Figure("decode_eff_tcp_2", without / alone, "ratio", "", baseline=alone, note=note.format(f"{without:.1f}")),
        Figure(
            "decode_eff_curve_2", keyed / alone, "ratio", "≥ 0.93", baseline=alone,
            note=note.format(f"{keyed:.1f}") + f"; keys leave {keyed / without:.3f} of the rate",
        ),
    ]  # fmt: skip


def _rate(streams: Streams, random: np.random.Generator) -> float:
    """Return the tokens per second of one stream, on a new prompt."""
    came = streams.generate(tuple(random.integers(1000, VOCAB, 32).tolist()), TOKENS)
    return (len(came) - 1) / ((came[-1].at_ns - came[0].at_ns) / 1e9)


@contextmanager
def _real_ring(stages: int, over: Over) -> Iterator[HostedRing]:
    """Run the default model on ONNX Runtime, with one thread per stage, each on a core of its own."""
    layers = Catalogue.load().get(DEFAULT_MODEL).n_layers
    weights = str(default_model_path())
    with run_folder() as folder, patch.dict(os.environ, {"OMP_NUM_THREADS": "1"}):
        settings = [_settings(folder, weights, index, stages, layers) for index in range(stages)]
        with hosted_ring(folder, settings, over) as ring:
            ring.streams.generate((1000,) * 32, 8)
            for core, process in enumerate(ring.processes):
                pin_busiest(process.pid, core)
            yield ring


def _settings(folder: Path, weights: str, index: int, stages: int, layers: int) -> Settings:
    begin, end = (at * layers // stages for at in (index, index + 1))
    shard = Shard(DEFAULT_MODEL, begin, end, layers)
    return Settings(str(folder), f"stage-{index}", shard, EPOCH, weights, KV_BYTES, engine="onnx")


def _bulk() -> Figure:
    """Send messages of 256 KiB from one thread to another, with and without keys in turn."""
    rounds = [(_bulk_rate(keys=False), _bulk_rate(keys=True)) for _ in range(ROUNDS)]
    plain, keyed = (median(column) for column in zip(*rounds, strict=True))
    note = f"256 KiB messages over tcp on loopback: {plain:.0f} MB/s without keys, {keyed:.0f} with them"
    return Figure("bulk_ratio", plain / keyed, "ratio", "", baseline=plain, note=note)


def _bulk_rate(*, keys: bool) -> float:
    """Return megabytes per second."""
    pair, message = new_key_pair(), bytes(BULK_BYTES)
    with zmq.Context() as here, zmq.Context() as there, nullcontext() if keys else without_keys():
        handler = ZapHandler(there, lambda domain, key: "any")
        inbox = open_socket(there, zmq.ROUTER, high_water_mark=DATA_MARK, largest_frame=DATA_BYTES)
        inbox.setsockopt(zmq.RCVTIMEO, WITHIN_MS)
        endpoint = bind_tcp(inbox, "127.0.0.1", 0, CurveServer(pair, "ring"))
        with open_socket(here, zmq.DEALER, high_water_mark=DATA_MARK) as dealer:
            dealer.setsockopt(zmq.SNDTIMEO, WITHIN_MS)
            connect(dealer, endpoint, pair)
            dealer.send(b"")
            inbox.recv_multipart()
            sender = threading.Thread(target=lambda: [dealer.send(message, copy=False) for _ in range(BULK_COUNT)])
            begun = time.perf_counter()
            sender.start()
            for _ in range(BULK_COUNT):
                inbox.recv_multipart(copy=False)
            seconds = time.perf_counter() - begun
            sender.join()
        inbox.close()
        handler.close()
    return BULK_BYTES * BULK_COUNT / seconds / 1e6
