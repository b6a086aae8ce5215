"""What a node can do, as plain values. Measuring is `actors.measure`'s and the engines' work, not done here."""

from __future__ import annotations

import msgspec


class EngineCapability(msgspec.Struct, frozen=True):
    """One engine as it was found on a node.

    `ms_per_layer` is the measured time of one decode step through one layer of the probe's synthetic Llama
    (see `engines.probe`), or None where the engine could not be measured; `detail` then says why.
    """

    name: str
    version: str = ""
    device: str = ""
    ms_per_layer: float | None = None
    detail: str = ""

    @property
    def usable(self) -> bool:
        """Whether the probe got an answer from it."""
        return self.ms_per_layer is not None


class Flops(msgspec.Struct, frozen=True):
    """Arithmetic speed in TFLOP/s; 0.0 where a format was not measured."""

    fp32: float = 0.0
    fp16: float = 0.0
    int8: float = 0.0


class DeviceCapabilities(msgspec.Struct, frozen=True):
    """What a machine offers. Memory in bytes; `memory_available` is what a shard may use now."""

    model: str = ""
    chip: str = ""
    memory_total: int = 0
    memory_available: int = 0
    flops: Flops = Flops()
    engines: tuple[EngineCapability, ...] = ()
    engine: str = ""
    why: str = ""
