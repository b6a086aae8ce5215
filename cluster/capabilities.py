"""What a node can do, as plain values. `actors.device_probe` and `engines.probe` measure it."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from common.limits import Detail, Name, Real, Whole


class EngineCapability(msgspec.Struct, frozen=True):
    """One engine, as found on a node.

    `ms_per_layer` is the measured time of one decode step through one layer of the synthetic Llama of `engines.probe`,
    or None if the engine could not be measured; `detail` then says why.
    """

    name: Name
    version: Name = ""
    device: Name = ""
    ms_per_layer: Real | None = None
    detail: Detail = ""

    @property
    def usable(self) -> bool:
        """Whether the probe could run it."""
        return self.ms_per_layer is not None


Engines = Annotated[tuple[EngineCapability, ...], Meta(max_length=8)]


class Flops(msgspec.Struct, frozen=True):
    """Arithmetic speed in TFLOP/s; 0.0 if a format was not measured."""

    fp32: Real = 0.0
    fp16: Real = 0.0
    int8: Real = 0.0


class DeviceCapabilities(msgspec.Struct, frozen=True):
    """What a machine offers. Memory is in bytes; `memory_available` is what a shard may use now.

    It takes `stages_left` stages more.

    `engine` is the name of the engine that was chosen, `why` a sentence with the reason. A GGUF model may run on
    another one (`engines.choice`). `precision` and `quantize` are the node's settings, by which follows what its engine
    holds of a model; a node that does not say holds float32.
    """

    model: Name = ""
    chip: Name = ""
    memory_total: Whole = 0
    memory_available: Whole = 0
    flops: Flops = Flops()
    engines: Engines = ()
    engine: Name = ""
    why: Detail = ""
    precision: Name = "exact"
    quantize: Name = "none"
    stages_left: Whole = 1

    @property
    def device(self) -> str:
        """The device of the chosen engine; empty if it was not measured."""
        return next((engine.device for engine in self.engines if engine.name == self.engine), "")

    def has(self, engine: str) -> bool:
        """Return whether a stage on this machine can use an engine."""
        return engine == self.engine or any(found.name == engine and found.usable for found in self.engines)
