"""One way to read a model's weights tensor by tensor, whatever their format. Knows no engine."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np

from models.config import ModelConfig
from models.errors import WeightsError
from models.weights.gguf_header import is_gguf
from models.weights.gguf_weights import GgufWeights
from models.weights.quantized import QuantizedMatrix
from models.weights.repository import Repository
from models.weights.safetensors_weights import SafetensorsWeights


class Weights(Protocol):
    """The tensors of one model, as a context manager: no tensor may be read after its end.

    Tensors have their Hugging Face checkpoint names. Reading one raises WeightsError if the files lack it or are
    damaged.
    """

    @property
    def config(self) -> ModelConfig:
        """The sizes and constants of the model."""
        ...

    @property
    def repository(self) -> Repository | None:
        """The files, for an engine that reads them by itself; None for a GGUF file or none at all."""
        ...

    def names(self) -> frozenset[str]:
        """List the checkpoint names that can be read; a partly fetched folder has fewer than the model."""
        ...

    def tensor(self, name: str) -> np.ndarray:
        """Read one tensor into a new C-contiguous float32 array of the checkpoint's shape."""
        ...

    def blocks(self, name: str) -> QuantizedMatrix | None:
        """Read a matrix as its file quantized it. Returns None if it is stored in another form."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_weights(path: Path) -> Weights:
    """Open a folder of safetensors files or a GGUF file, whatever its name, after checking its headers.

    Raises WeightsError.
    """
    if path.is_dir():
        return SafetensorsWeights(path)
    if path.suffix.lower() == ".gguf" or is_gguf(path):
        return GgufWeights(path)
    raise WeightsError(f"{path} is neither a model folder nor a GGUF file; give the path of one")
