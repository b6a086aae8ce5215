"""What a node can do, as plain values. Measuring is `actors.device_probe`'s and the engines' work, not done here."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from common.limits import Detail, Name, Real, Whole


class EngineCapability(msgspec.Struct, frozen=True):
    """One engine as it was found on a node.

    `ms_per_layer` is the measured time of one decode step through one layer of the probe's synthetic Llama
    (see `engines.probe`), or None where the engine could not be measured; `detail` then says why.
    """

    name: Name
    version: Name = ""
    device: Name = ""
    ms_per_layer: Real | None = None
    detail: Detail = ""

    @property
    def usable(self) -> bool:
        """Whether the probe got an answer from it."""
        return self.ms_per_layer is not None


class Flops(msgspec.Struct, frozen=True):
    """Arithmetic speed in TFLOP/s; 0.0 where a format was not measured."""

    fp32: Real = 0.0
    fp16: Real = 0.0
    int8: Real = 0.0


class DeviceCapabilities(msgspec.Struct, frozen=True):
    """What a machine offers. Memory in bytes; `memory_available` is what a shard may use now."""

    model: Name = ""
    chip: Name = ""
    memory_total: Whole = 0
    memory_available: Whole = 0
    flops: Flops = Flops()
    engines: Annotated[tuple[EngineCapability, ...], Meta(max_length=8)] = ()
    engine: Name = ""
    why: Detail = ""
