"""Each shape and quantization on each engine that is worth it, beside llama.cpp's bare loop, in turns."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

import msgspec

from actors.device_probe import describe
from common.machine import cores, memory
from engines.choice import Choice, candidates, choose
from engines.model_probe import measure as measure_speeds
from models.cache import default_cache_root
from models.weights.gguf.parts import read_model_header
from tests.bench.figures import Figure
from tests.bench.machine import load_sentence
from tests.bench.shapes.random_gguf import MAIN_TYPES, Shape, random_gguf
from tests.bench.shapes.worker import BARE, Loaded, Turn
from tests.support.models import default_model_path

FOLDER = Path("build/bench")
DEFAULT = "135m"
SHAPES = {
    "1b": Shape("1b", 16, 2048, 8192, 32, 8, 128256, tied=True),
    "8b": Shape("8b", 32, 4096, 14336, 32, 8, 128256, tied=False),
}
TURNS = ("decode", "prefill", "streams")
ROUNDS, LARGE_ROUNDS = 5, 2
LARGE = 2 << 30
"""From so many bytes on, a model takes LARGE_ROUNDS: a round of an 8B takes minutes."""

ROOM = 3.0
"""How many times its file's size a model needs of free memory: three sides hold it, some of them a copy."""

PROBE_TIMEOUT_S = 120.0
GIB = 1 << 30


def names(shape: str) -> tuple[str, ...]:
    """List the figures of a shape. Those of one core end in `_1`, those of all cores in their number."""
    models = [f"shapes_{label}" for label in _labels(shape)]
    turns = [f"{turn}_{threads}" for threads in sorted({1, cores()}) for turn in TURNS]
    return tuple(f"{model}_{what}" for model in models for what in (*turns, "load_s", "over_file_gib"))


def _labels(shape: str) -> list[str]:
    return [f"{shape}_{quantization.lower()}" for quantization in (MAIN_TYPES if shape in SHAPES else ("Q4_1",))]


class Side:
    """A worker process with one side. Raises AssertionError if it ends or says nothing."""

    def __init__(self, name: str, path: Path, threads: int, layers: tuple[int, int] = (0, 0)) -> None:
        command = [sys.executable, "-m", "tests.bench.shapes.worker", name, str(path), *map(str, layers)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "EXOBUS_CACHE": str(FOLDER.absolute() / "cache")}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        if threads == 1 and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(self._process.pid, {min(os.sched_getaffinity(0))})
        self.loaded = msgspec.json.decode(self._line(), type=Loaded)

    def turn(self, name: str) -> Turn:
        """Take one turn."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{name}\n")
        self._process.stdin.flush()
        return msgspec.json.decode(self._line(), type=Turn)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"process {self._process.pid} ended"
        return line


def measure(name: str) -> list[Figure]:
    """Measure the models of one shape. One that memory does not hold is left out with a sentence."""
    print(f"{name}: {load_sentence()}", flush=True)
    engines = candidates(describe("auto", "fast", default_cache_root()).engines, "")
    figures: list[Figure] = []
    for label, path in _models(name):
        for threads in sorted({1, cores()}):
            figures += _compared(label, path, threads, engines)
        figures += _memory(label, path, engines)
    return figures


def _models(name: str) -> Iterator[tuple[str, Path]]:
    """Return the names and files of a shape's models, each random one written when it is its turn."""
    for quantization, label in zip(MAIN_TYPES, _labels(name), strict=False):
        path = random_gguf(SHAPES[name], quantization, FOLDER) if name in SHAPES else default_model_path()
        size = path.stat().st_size
        if memory().available < ROOM * size:
            print(f"{label} is left out: {ROOM:g} times its {size / GIB:.1f} GiB are not free")
        else:
            yield label, path


def _chosen(names: Sequence[str], path: Path, threads: int) -> Choice:
    """Choose as a node with engines of so many threads."""
    header = read_model_header(path, skipped="tokenizer.")
    os.environ["OMP_NUM_THREADS"] = str(threads)
    return choose(measure_speeds(names, "fast", path, header, PROBE_TIMEOUT_S).speeds, names[0], {})


def _compared(label: str, path: Path, threads: int, names: Sequence[str]) -> list[Figure]:
    chosen = _chosen(names, path, threads)
    print(f"{label}: {chosen.engine}; {chosen.why}", flush=True)
    count = ROUNDS if path.stat().st_size < LARGE else LARGE_ROUNDS
    with _sides((BARE, *names), path, threads) as sides:
        rounds = [
            {(turn, name): side.turn(turn) for turn in TURNS for name, side in sides.items()} for _ in range(count)
        ]
    return [_figure(f"{label}_{turn}_{threads}", turn, rounds, names, chosen.engine) for turn in TURNS]


@contextmanager
def _sides(names: Sequence[str], path: Path, threads: int) -> Iterator[dict[str, Side]]:
    with ExitStack() as stack:
        sides = {}
        for name in names:
            sides[name] = Side(name, path, threads)
            stack.callback(sides[name].close)
        yield sides


def _figure(
    label: str, turn: str, rounds: Sequence[Mapping[tuple[str, str], Turn]], names: Sequence[str], chosen: str
) -> Figure:
    """Return the ratio of the chosen engine to the bare loop, in tokens by processor time; the note has all rates.

    A ratio is the median of those of the rounds, since the processor's clock changes from one round to the next.
    """
    wall, cpu = (
        {name: median(getattr(one[turn, name], kind) for one in rounds) for name in (BARE, *names)}
        for kind in ("per_s", "per_cpu_s")
    )
    ratios = {
        name: median(one[turn, name].per_cpu_s / one[turn, BARE].per_cpu_s for one in rounds) for name in (BARE, *names)
    }
    note = f"{chosen} is chosen; tok/s by CPU time (wall; ratio): "
    note += ", ".join(f"{name} {cpu[name]:.1f} ({wall[name]:.1f}; {ratios[name]:.2f})" for name in cpu)
    figure = Figure(f"shapes_{label}", ratios[chosen], "ratio", "≥ 1", baseline=cpu[BARE], note=note)
    print(f"{figure.name}: {figure.value:.2f}; {note}", flush=True)
    return figure


def _memory(name: str, path: Path, names: Sequence[str]) -> list[Figure]:
    """Load the model and its first half with each engine, alone, and compare with the file."""
    layers, notes, found = _layers(path), [], {}
    for engine in names:
        whole, half = (_loaded(engine, path, end) for end in (0, layers // 2))
        found[engine] = whole
        notes.append(
            f"{engine} {whole.seconds:.1f} s ({whole.cpu_seconds:.1f} of CPU), {whole.resident / GIB:.2f} GiB"
            f" ({whole.mapped / GIB:.2f} of it the file's), half {half.resident / GIB:.2f} GiB"
        )
    size = path.stat().st_size
    note = f"file {size / GIB:.2f} GiB; {'; '.join(notes)}"
    print(f"shapes_{name}_load: {note}", flush=True)
    seconds = min(loaded.seconds for loaded in found.values())
    over = min(loaded.resident for loaded in found.values()) - size
    return [
        Figure(f"shapes_{name}_load_s", seconds, "s", "≤ 2 (1b), ≤ 8 (8b)", note=f"the faster engine; {note}"),
        Figure(f"shapes_{name}_over_file_gib", over / GIB, "GiB", "≤ 0.5", note=f"the smaller engine; {note}"),
    ]


def _loaded(engine: str, path: Path, end: int) -> Loaded:
    side = Side(engine, path, 1, (0, end))
    side.close()
    return side.loaded


def _layers(path: Path) -> int:
    return int(read_model_header(path, skipped="tokenizer.").metadata["llama.block_count"])
