"""The comparison with llama.cpp: the same file, one thread per core, the same lengths, both sides in turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import gguf

from tests.bench.figures import Figure
from tests.bench.machine import int8_products_per_s, load_sentence, read_bytes_per_s
from tests.bench.ours import Ours, ring
from tests.bench.peers.commands import AbsentError
from tests.bench.peers.llamacpp import LlamaCpp, rpc_servers
from tests.bench.peers.llamacpp_build import BENCHES, llamacpp
from tests.support.models import default_model_path

NAMES = ("cpu_decode_vs_llamacpp", "cpu_prefill_vs_llamacpp", "cpu_streams8_vs_llamacpp", "ring2_vs_llamacpp_rpc")
ROUNDS = {"fast": 5, "exact": 3}
LONG = 512
SHORT = 32
TOKENS = 64
CROWD = 8


@dataclass(frozen=True)
class Sides:
    """The sides that are compared: exobus and llama.cpp, each on one core and on two."""

    ours: Ours
    our_ring: Ours
    theirs: LlamaCpp
    their_ring: LlamaCpp


@dataclass(frozen=True)
class Limits:
    """The limits of one core in tokens per second: by memory for one stream, by arithmetic for many rows."""

    decode: float
    prefill: float
    streams: float


Rates = dict[str, float]
TURNS: dict[str, Callable[[Sides], float]] = {
    "prefill": lambda sides: sides.ours.prefill_rate(LONG),
    "their prefill": lambda sides: sides.theirs.prefill_rate(LONG),
    "decode": lambda sides: sides.ours.decode_rate(SHORT, TOKENS),
    "their decode": lambda sides: sides.theirs.decode_rate(SHORT, TOKENS),
    "streams": lambda sides: sides.ours.streams_rate(CROWD, SHORT, TOKENS),
    "their streams": lambda sides: sides.theirs.streams_rate(CROWD, SHORT, TOKENS),
    "ring": lambda sides: sides.our_ring.decode_rate(SHORT, TOKENS),
    "their ring": lambda sides: sides.their_ring.decode_rate(SHORT, TOKENS),
    "ring streams": lambda sides: sides.our_ring.streams_rate(CROWD, SHORT, TOKENS),
    "their ring streams": lambda sides: sides.their_ring.streams_rate(CROWD, SHORT, TOKENS),
}
"""One round, in this order: ours, theirs, ours, theirs."""


def measure() -> list[Figure]:
    """Measure the four ratios. Returns none, and prints the reason, if llama.cpp cannot be built."""
    try:
        programs = llamacpp(*BENCHES)
    except AbsentError as absent:
        print(f"no {', '.join(NAMES)}: {absent}")
        return []
    print(load_sentence())
    model = default_model_path()
    rates = {precision: _rates(programs, model, precision, rounds) for precision, rounds in ROUNDS.items()}
    return figures(rates["fast"], rates["exact"], _limits(model))


def figures(fast: Rates, exact: Rates, limits: Limits) -> list[Figure]:
    """Compute the ratios of our fast precision to llama.cpp; notes have those of the exact one and other rates."""
    batch = f"{CROWD} streams beside its one (its own {CROWD}: {fast['their streams']:.0f})"
    apart = f"2 cores ({CROWD} streams: {fast['ring streams']:.0f} and {fast['their ring streams']:.0f})"
    return [
        _ratio(NAMES[0], "≥ 1.2", (fast, exact), ("decode", "their decode"), limits.decode, "one stream"),
        _ratio(NAMES[1], "≥ 1.8", (fast, exact), ("prefill", "their prefill"), limits.prefill, f"prompt of {LONG}"),
        _ratio(NAMES[2], "≥ 3", (fast, exact), ("streams", "their decode"), limits.streams, batch),
        _ratio(NAMES[3], "≥ 1.5", (fast, exact), ("ring", "their ring"), limits.decode, apart),
    ]


def _ratio(
    name: str, goal: str, precisions: tuple[Rates, Rates], sides: tuple[str, str], limit: float, what: str
) -> Figure:
    (value, baseline), (exact, beside_exact) = ([rates[side] for side in sides] for rates in precisions)
    note = f"{what}: {value:.0f} and {baseline:.0f} tok/s; exact ×{exact / beside_exact:.2f}"
    return Figure(name, value / baseline, "ratio", goal, limit / baseline, baseline, note)


def _rates(programs: Path, model: Path, precision: str, rounds: int) -> Rates:
    with _sides(programs, model, precision) as sides:
        turns = [{name: turn(sides) for name, turn in TURNS.items()} for _ in range(rounds)]
    return {name: median(turn[name] for turn in turns) for name in TURNS}


@contextmanager
def _sides(programs: Path, model: Path, precision: str) -> Iterator[Sides]:
    with ExitStack() as stack:
        servers = stack.enter_context(rpc_servers(programs, 2))
        ours, our_ring = (stack.enter_context(ring(stages, precision)) for stages in (1, 2))
        yield Sides(ours, our_ring, LlamaCpp(programs, model), LlamaCpp(programs, model, servers))


def _limits(model: Path) -> Limits:
    tensors = gguf.GGUFReader(model).tensors
    weights = {tensor.name: int(tensor.n_elements) for tensor in tensors if len(tensor.shape) == 2}
    products = int8_products_per_s()
    return Limits(
        decode=read_bytes_per_s() / sum(int(tensor.n_bytes) for tensor in tensors),
        prefill=products / (sum(weights.values()) - weights["token_embd.weight"]),  # the head sees one row of a prompt
        streams=products / sum(weights.values()),
    )
