"""A GGUF file of the Llama architecture, read tensor by tensor under Hugging Face checkpoint names.

llama.cpp stores the rows of q and k in the order of its pairwise rope; they are put back into the half-split
order of the checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import gguf
import msgspec
import numpy as np

from cluster.shard import whole
from models.config import ModelConfig
from models.errors import WeightsError
from models.weights.checkpoint import check_shapes, tensor_names
from models.weights.gguf_config import config_from_gguf
from models.weights.gguf_header import GgufTensor
from models.weights.gguf_parts import read_model_header
from models.weights.gguf_tensors import read_bytes, read_tensor
from models.weights.quantized import UNPACK, QuantizedMatrix

_LAYER = re.compile(r"blk\.(\d+)\.")


class GgufWeights:
    """The tensors of a .gguf file, or of all parts of a split model. Only the bytes of requested tensors are read."""

    def __init__(self, path: Path) -> None:
        header = read_model_header(path)
        self._path = path
        self.config = config_from_gguf(header, path)
        self._tensors = by_checkpoint_name(self.config, header.tensors)
        check_shapes(self.config, {name: tensor.shape for name, tensor in self._tensors.items()}, path)

    def names(self) -> frozenset[str]:
        """List the checkpoint names of the model's tensors in the file."""
        return frozenset(self._tensors)

    def tensor(self, name: str) -> np.ndarray:
        """Read a tensor into a new C-contiguous float32 array of the checkpoint's shape. Raises WeightsError."""
        return self._in_checkpoint_order(name, read_tensor(self._path, self._stored(name)))

    def blocks(self, name: str) -> QuantizedMatrix | None:
        """Read a matrix as it is quantized; None for kinds that `quantized` does not unpack. Raises WeightsError."""
        stored = self._stored(name)
        if stored.kind not in UNPACK:
            return None
        found = UNPACK[stored.kind](read_bytes(self._path, stored), stored.shape[0])
        parts = (found.codes, found.scales, found.minimums)
        codes, scales, minimums = (self._in_checkpoint_order(name, part) for part in parts)
        return QuantizedMatrix(codes, scales, minimums, found.bits, found.center)

    def _stored(self, name: str) -> GgufTensor:
        stored = self._tensors.get(name)
        if stored is None:
            raise WeightsError(f"{self._path} holds no tensor {name}; fetch the model again")
        return stored

    def _in_checkpoint_order(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Undo llama.cpp's permutation of the rows of q and k; other tensors pass unchanged."""
        if ".q_proj." in name:
            return _half_split(rows, self.config.n_heads)
        if ".k_proj." in name:
            return _half_split(rows, self.config.n_kv_heads)
        return rows

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tensors.clear()


def by_checkpoint_name(config: ModelConfig, tensors: Mapping[str, GgufTensor]) -> dict[str, GgufTensor]:
    """Key the model's tensors by checkpoint name: `blk.3.attn_q.weight` is `model.layers.3.self_attn.q_proj.weight`.

    The `gguf` package knows the GGUF name of each module. Other tensors, such as rope factors, are left out.
    """
    # One layer stands for all: the number of layers comes from the file and may be anything.
    first_layer = msgspec.structs.replace(config, n_layers=1)
    known = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 1)
    names = tensor_names(first_layer, whole(config.model_type, 1))
    modules = {known.get_name(module): module for module in (name.rpartition(".")[0] for name in names)}
    found: dict[str, GgufTensor] = {}
    for name, tensor in tensors.items():
        stem, _, suffix = name.rpartition(".")
        module = modules.get(_LAYER.sub("blk.0.", stem))
        if module is not None:
            layer = _LAYER.match(stem)
            module = module.replace(".layers.0.", f".layers.{layer[1]}.") if layer else module
            found[f"{module}.{suffix}"] = tensor
    return found


def _half_split(values: np.ndarray, heads: int) -> np.ndarray:
    """Reorder each head's rows from interleaved pairs, (2i, 2i + 1), to split halves, (i, i + d/2)."""
    pairs = values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)
