"""Finds the engine of a model that is to be loaded: a measurement of its own for each GGUF model, kept on disk.

It runs in the engine's process, so that the children that measure have the threads that the engine will have.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import cast

import msgspec
import psutil
from gguf import Keys

from bus.messages import EngineLoad
from common.config import NodeConfig
from common.files import write_atomic
from engines.choice import Choice, ModelSpeed, candidates, choose
from engines.errors import EngineError
from engines.llamacpp.library import VARIABLE
from engines.llamacpp.shard_file import check_cut
from engines.model_probe import measure
from engines.probe import fingerprint
from engines.settings import Precision
from models.errors import WeightsError
from models.families import GGUF_FAMILIES
from models.weights.gguf.header import GgufHeader
from models.weights.gguf.parts import read_model_header
from models.weights.safetensors_weights import folder_model

logger = logging.getLogger(__name__)

FOLDER = ".engines"
PROBE_TIMEOUT_S = 20.0
SMALL = 32 << 20
"""The bytes of weights below which a model is not measured: any engine is fast enough for it."""

LLAMACPP = "llamacpp"

QUIET = 0.25
"""If other programs use a larger share of the machine, what is measured counts only until the machine is quiet."""

GLANCE_S = 0.25
"""For so long the machine is watched to see whether it is quiet now."""


class Kept(msgspec.Struct, frozen=True):
    """The content of a kept file: speeds, and the share of the machine that other programs used meanwhile."""

    speeds: tuple[ModelSpeed, ...]
    others: float = 0.0


def engine_for(load: EngineLoad, config: NodeConfig) -> Choice:
    """Return the engine for a shard, and why: the one that the node's settings name, else by the model.

    Files that cannot be read leave the choice to the machine's own engine, which raises the error when it loads them.
    """
    if config.engine != "auto":
        return Choice(load.engine, "it was asked for")
    path = Path(load.path)
    with suppress(WeightsError):
        if not path.is_dir():
            return _for_gguf(path, load, config)
        if folder_model(path).undescribed:
            return Choice("mlx", "no other engine runs this model")
    return Choice(load.engine, "it is the fastest engine of this machine")


def _for_gguf(path: Path, load: EngineLoad, config: NodeConfig) -> Choice:
    header = read_model_header(path, skipped="tokenizer.")
    if header.metadata.get(Keys.General.ARCHITECTURE) not in GGUF_FAMILIES:
        return Choice(LLAMACPP, "no other engine runs this model")
    names, refused = candidates(load.engines, load.engine), {}
    if LLAMACPP in names:
        try:
            check_cut(header, load.shard)
        except EngineError as error:
            refused[LLAMACPP] = str(error)
    if len(names) - len(refused) < 2 or sum(tensor.nbytes for tensor in header.tensors.values()) < SMALL:
        return Choice(load.engine, "of this machine's engines with room for the model, it is the fastest")
    return choose(_speeds(names, path, header, load.precision, config), load.engine, refused)


def _speeds(
    names: Sequence[str], path: Path, header: GgufHeader, precision: str, config: NodeConfig
) -> tuple[ModelSpeed, ...]:
    """Return what is kept of a model's speeds in the model cache or the data folder, or measure them."""
    name = f"{_key(header, precision)}.json"
    files = [Path(folder) / FOLDER / name for folder in (config.cache_dir, config.data_dir)]
    for file in files:
        with suppress(OSError, msgspec.DecodeError):
            kept = msgspec.json.decode(file.read_bytes(), type=Kept)
            if [speed.name for speed in kept.speeds] == list(names) and (kept.others <= QUIET or _is_busy()):
                return kept.speeds
    try:
        measured = measure(names, precision, path, header, PROBE_TIMEOUT_S)
    except OSError as error:
        return tuple(ModelSpeed(name, detail=f"there is no room to measure ({error.strerror})") for name in names)
    _keep(files, Kept(*measured))
    return measured.speeds


def _is_busy() -> bool:
    """Watch the machine for GLANCE_S. Returns whether measuring now would give nothing better."""
    return psutil.cpu_percent(GLANCE_S) > 100 * QUIET


def _keep(files: Sequence[Path], kept: Kept) -> None:
    for file in files:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(file, msgspec.json.encode(kept))
            return
        except OSError as error:
            logger.warning("%s cannot be written (%s): the model is measured again next time", file, error.strerror)


def _key(header: GgufHeader, precision: str) -> str:
    """Hash what the speeds depend on: machine, packages, threads, and the model's tensors but not their contents."""
    facts = [fingerprint(precision=cast(Precision, precision))]
    facts += [os.environ.get(name, "") for name in ("OMP_NUM_THREADS", VARIABLE)]
    facts += [f"{header.metadata.get(Keys.General.ARCHITECTURE)}"]
    facts += [f"{name} {tensor.kind.name} {tensor.shape}" for name, tensor in sorted(header.tensors.items())]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:32]
