"""One way to read a model's weights tensor by tensor, whatever their format. Knows no engine."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cluster.shard import whole
from models.architecture import Architecture
from models.errors import WeightsError
from models.settings import Settings
from models.sizes import ModelSizes, model_sizes
from models.stored_model import StoredModel
from models.weights.checkpoint import tensor_names
from models.weights.gguf.header import is_gguf
from models.weights.gguf.weights import GgufWeights
from models.weights.quantized import BlockForm, BlockMatrix
from models.weights.repository import Repository
from models.weights.safetensors_weights import SafetensorsWeights


class Weights(Protocol):
    """The tensors of one model, as a context manager: no tensor may be read after its end.

    Tensors have the names and shapes of `models.weights.checkpoint`. Reading one raises WeightsError if the files lack
    it or are damaged.
    """

    @property
    def architecture(self) -> Architecture:
        """What the model is. Raises WeightsError for one that exobus does not describe; it has a `repository`."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings from which it was described, in the form of a Hugging Face `config.json`."""
        ...

    @property
    def repository(self) -> Repository | None:
        """The files, for an engine that reads them by itself; None for a described GGUF file or none at all."""
        ...

    def names(self) -> frozenset[str]:
        """List the tensors that can be read; a partly fetched folder has fewer than the model."""
        ...

    def tensor(self, name: str) -> np.ndarray:
        """Read one tensor into a new C-contiguous float32 array."""
        ...

    def blocks(self, name: str) -> BlockMatrix | None:
        """Return a matrix as its file quantized it, unpacked when it is used; None if it is stored in another form."""
        ...

    def form(self, name: str) -> BlockForm | None:
        """Return the form of what `blocks` returns, without reading it."""
        ...


def sizes_of(weights: Weights) -> ModelSizes:
    """Return the sizes of a model, whether or not exobus describes it."""
    return model_in(weights).sizes


def sizes_at(path: Path) -> ModelSizes:
    """Return the sizes of the model at `path`, as `sizes_of` does. Raises WeightsError."""
    return sizes_of(open_weights(path))


def model_in(weights: Weights) -> StoredModel:
    """Return what is known of a model, whether or not exobus describes it."""
    if weights.repository is not None:
        return weights.repository.model
    architecture = weights.architecture
    return StoredModel(Settings(weights.settings, architecture.family), model_sizes(architecture), "", architecture)


def check_whole(architecture: Architecture, names: Collection[str], where: str) -> None:
    """Raise WeightsError if the tensors of these canonical names lack one of the model."""
    needed = tensor_names(architecture, whole("", architecture.n_layers))
    if missing := next((name for name in needed if name not in names), ""):
        raise WeightsError(f"{where} lacks {missing}, which its settings ask for; pick another model")


def open_weights(path: Path) -> Weights:
    """Open a folder of safetensors files or a GGUF file, whatever its name, after checking its headers.

    Raises WeightsError.
    """
    if path.is_dir():
        return SafetensorsWeights(path)
    if path.suffix.lower() == ".safetensors":
        raise WeightsError(f"{path} is a part of a model; give the path of its folder")
    # Only a file: opening a pipe would wait for its other end.
    if (path.is_file() or not path.exists()) and (path.suffix.lower() == ".gguf" or is_gguf(path)):
        return GgufWeights(path)
    raise WeightsError(f"{path} is neither a model folder nor a GGUF file; give the path of one")
