"""Measures how fast each engine is on this machine: `python -m engines.probe NAME [PRECISION]` measures one.

The parent runs one such child process after another and chooses an engine. No model files are read.
"""

from __future__ import annotations

import hashlib
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from statistics import median
from typing import cast

import msgspec
import numpy as np

from cluster.capabilities import EngineCapability
from cluster.shard import Shard
from common.limits import MAX_DETAIL, cut
from common.processor import processor_name
from common.python_child import child_environment, module_command
from engines.engine import Chunk
from engines.errors import EngineError
from engines.random_weights import RandomWeights
from engines.registry import create
from engines.settings import CHOSEN, Precision

LAYERS, HIDDEN_SIZE = 4, 1024
WARM_STEPS = 3
TIMED_STEPS = 8

SETTINGS = {
    "model_type": "llama",
    "num_hidden_layers": LAYERS + 2,
    "hidden_size": HIDDEN_SIZE,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "intermediate_size": 2816,
    "vocab_size": 256,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 512,
    "torch_dtype": "float16",
}
"""About 11 million weights a layer: too many for a processor's cache, and few enough to make in a second."""

SHARD = Shard("probe", 1, 1 + LAYERS, LAYERS + 2)
"""Layers from the middle, so that neither the embedding nor the head is measured."""


class ProbeFailed(Exception):
    """A child process measured nothing. The text says why."""


PACKAGES = ("numpy", "mlx", "mlx-lm", "onnxruntime", "tinygrad", "xllamacpp", "ziglang")


def measure(names: Iterable[str], timeout_s: float, precision: Precision = "fast") -> tuple[EngineCapability, ...]:
    """Probe each engine in a child process, one after another, each for at most `timeout_s` seconds.

    For an engine that cannot be measured `ms_per_layer` is None, and `detail` says why.
    """
    return tuple(_measure_one(name, timeout_s, precision) for name in names)


def choose(capabilities: Sequence[EngineCapability]) -> tuple[str, str]:
    """Return the fastest engine of CHOSEN and a sentence that says why. Raises EngineError if none is usable."""
    capabilities = [capability for capability in capabilities if capability.name in CHOSEN]
    timed = sorted((c.ms_per_layer, c.name, c.device) for c in capabilities if c.ms_per_layer is not None)
    if not timed:
        reasons = "; ".join(f"{c.name}: {c.detail}" for c in capabilities) or "none was probed"
        raise EngineError(f"no engine works on this machine ({reasons})")
    (ms, name, device), *others = timed
    figures = ", ".join(f"{other} {slower:.2f} ms" for slower, other, _ in others)
    why = f"{name} on {device} takes {ms:.2f} ms a layer"
    return name, f"{why}, the fastest measured ({figures})" if figures else f"{why}, the only one that works"


def fingerprint(packages: Sequence[str] = PACKAGES, precision: Precision = "fast") -> str:
    """Hash what a measurement depends on: processor, Python, packages and precision. A key for stored results."""
    facts = [platform.machine(), processor_name(), platform.python_version(), precision]
    facts += [f"{package}={_version(package)}" for package in packages]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def probe(name: str, precision: Precision = "fast") -> EngineCapability:
    """Measure one engine in this process: the median decode step through `LAYERS` layers, per layer."""
    engine = create(name, precision)
    engine.read(SHARD, RandomWeights(SETTINGS))
    row = np.full((1, HIDDEN_SIZE), 0.01, np.float32)
    seconds = []
    for position in range(WARM_STEPS + TIMED_STEPS):  # the first steps compile, and touch the memory
        began = time.perf_counter()
        engine.forward([Chunk(slot=0, position=position, inputs=row)])
        seconds.append(time.perf_counter() - began)
    engine.close()
    ms_per_layer = 1000 * median(seconds[WARM_STEPS:]) / LAYERS
    return msgspec.structs.replace(engine.capabilities(), ms_per_layer=ms_per_layer)


def last_line(timeout_s: float, module: str, *arguments: str) -> bytes:
    """Run a module of exobus in a child process and return the last line that it prints.

    Raises ProbeFailed if it prints none, or takes longer than `timeout_s` seconds.
    """
    try:
        done = subprocess.run(
            module_command(module, *arguments),
            env=child_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ProbeFailed(f"took longer than {timeout_s:g} s") from None
    if not done.returncode and (lines := done.stdout.splitlines()):
        return lines[-1]
    reason = "".join(done.stderr.decode(errors="replace").strip().splitlines()[-1:])
    raise ProbeFailed(cut(f"the probe ended with status {done.returncode}: {reason}", MAX_DETAIL))


def _measure_one(name: str, timeout_s: float, precision: Precision) -> EngineCapability:
    try:
        return msgspec.json.decode(last_line(timeout_s, "engines.probe", name, precision), type=EngineCapability)
    except ProbeFailed as failed:
        return EngineCapability(name=name, detail=str(failed))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def main(name: str, precision: str = "fast") -> None:
    """Print one JSON line, an EngineCapability. If the engine cannot start, its `detail` says why."""
    try:
        found = probe(name, cast(Precision, precision))  # which `create` checks
    except EngineError as error:
        found = EngineCapability(name=name, detail=cut(str(error), MAX_DETAIL))
    sys.stdout.write(msgspec.json.encode(found).decode() + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
