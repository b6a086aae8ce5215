"""One way to read a model's weights tensor by tensor, whatever their format. Knows no engine."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np

from models.checkpoint import shard_names
from models.config import ModelConfig
from models.errors import WeightsError
from models.gguf_weights import GgufWeights
from models.quantized import QuantizedMatrix
from models.safetensors_weights import SafetensorsWeights

__all__ = ["Weights", "WeightsError", "open_weights", "shard_names"]


class Weights(Protocol):
    """The tensors of one model. A context manager: no tensor is read after its end."""

    @property
    def config(self) -> ModelConfig:
        """The sizes and constants of the model."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors as stored on disk."""
        ...

    def names(self) -> frozenset[str]:
        """The checkpoint names that can be read here (a folder fetched in part holds fewer)."""
        ...

    def tensor(self, name: str) -> np.ndarray:
        """A fresh C-contiguous float32 array of the checkpoint's shape; reads only it. WeightsError."""
        ...

    def blocks(self, name: str) -> QuantizedMatrix | None:
        """The matrix as codes, scales and minimums where it is stored so, else None. WeightsError."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_weights(path: Path) -> Weights:
    """The weights in a folder of safetensors files or in a .gguf file, checked before use. WeightsError."""
    if path.is_dir():
        return SafetensorsWeights(path)
    if path.suffix == ".gguf":
        return GgufWeights(path)
    raise WeightsError(f"{path} is neither a model folder nor a .gguf file; give the path of one")
