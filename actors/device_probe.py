"""Describes this machine and finds the engine that is fastest on it.

`python -m actors.device_probe ENGINE PRECISION FOLDER...` prints JSON. It is a process of its own, so that the node
actor stays small. The measurement is kept until a package or the processor changes, in the first folder that can be
written: the model cache, for all nodes of the machine, or the node's data folder. Available memory is not part of it:
that changes by the second.
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import msgspec

from cluster.capabilities import DeviceCapabilities, EngineCapability, Flops
from common.files import write_atomic
from common.machine import memory
from common.processor import processor_name
from engines.settings import Precision

PROBE_TIMEOUT_S = 20.0
MATRIX = 1024
MEASURED_FILE = ".measured-{}.json"  # one for each precision


class Measured(msgspec.Struct, frozen=True):
    """The content of the kept file: the figures, and the fingerprint that they belong to."""

    fingerprint: str
    capabilities: DeviceCapabilities


def describe(engine: str, precision: Precision, *folders: Path) -> DeviceCapabilities:
    """Describe the machine with `engine` chosen: `auto` takes the fastest at this precision, a name is not checked.

    With a name, no other engine is listed, since none is used.

    Raises engines.engine.EngineError if no engine works.
    """
    from engines.probe import choose, fingerprint

    files, key = [folder / MEASURED_FILE.format(precision) for folder in folders], fingerprint(precision=precision)
    kept = next(filter(None, (_kept(file, key) for file in files)), None)
    if engine != "auto":
        only = tuple(found for found in kept.engines if found.name == engine) if kept else ()
        return msgspec.structs.replace(kept or _machine(()), engine=engine, engines=only, why="it was asked for")
    found = kept or _measure(files, key, precision)
    name, why = choose(found.engines)
    return msgspec.structs.replace(found, engine=name, why=why)


def _measure(files: Sequence[Path], fingerprint: str, precision: Precision) -> DeviceCapabilities:
    from engines.probe import measure
    from engines.settings import ENGINES

    engines = measure(ENGINES, PROBE_TIMEOUT_S, precision)  # `detail` of the others says why they cannot be used
    found = _machine(tuple(sorted(engines, key=lambda engine: (not engine.usable, engine.ms_per_layer or 0.0))))
    reasons = []
    for file in files:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(file, msgspec.json.encode(Measured(fingerprint, found)))
            return found
        except OSError as error:
            reasons.append(f"{file} cannot be written ({error.strerror})")
    sys.stderr.write(f"the engines will be measured again at the next start: {'; '.join(reasons)}\n")
    return found


def _machine(engines: tuple[EngineCapability, ...]) -> DeviceCapabilities:
    return DeviceCapabilities(_model(), processor_name(), memory().total, 0, Flops(fp32=_fp32_tflops()), engines)


def _kept(file: Path, fingerprint: str) -> DeviceCapabilities | None:
    try:
        kept = msgspec.json.decode(file.read_bytes(), type=Measured)
    except (OSError, msgspec.DecodeError):
        return None
    return kept.capabilities if kept.fingerprint == fingerprint else None


def _fp32_tflops() -> float:
    """Return the best of three products of 1024 x 1024 matrices, in TFLOP/s."""
    import numpy as np

    matrix = np.ones((MATRIX, MATRIX), np.float32)
    times = []
    for _ in range(3):
        begun = time.perf_counter()
        np.matmul(matrix, matrix)
        times.append(time.perf_counter() - begun)
    return round(2 * MATRIX**3 / min(times) / 1e12, 4)


def _model() -> str:
    try:
        return Path("/sys/devices/virtual/dmi/id/product_name").read_text().strip()
    except OSError:
        return f"{platform.system()} {platform.machine()}"


def main(engine: str, precision: str, *folders: str) -> None:
    """Print DeviceCapabilities as one line of JSON; on failure, print one sentence on standard error."""
    from engines.errors import EngineError

    try:
        found = describe(engine, cast(Precision, precision), *map(Path, folders))  # which the engines check
    except EngineError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(1) from None
    sys.stdout.write(msgspec.json.encode(found).decode() + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
