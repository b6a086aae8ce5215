"""A GGUF file, read tensor by tensor under canonical names.

Of some families llama.cpp stores the rows of q and k in the order of its pairwise rope; they are put back into the
half-split order of the checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import MODEL_ARCH, Keys, get_tensor_name_map

from cluster.shard import whole
from models.architecture import Architecture
from models.errors import WeightsError
from models.families import FAMILIES, GGUF_FAMILIES, described
from models.weights.gguf.blocks import FORMS
from models.weights.gguf.config import gguf_settings
from models.weights.gguf.header import GgufHeader, GgufTensor
from models.weights.gguf.packed_matrix import PackedMatrix
from models.weights.gguf.parts import read_model_header
from models.weights.gguf.tensors import mapped_bytes, read_tensor
from models.weights.gguf.undescribed import undescribed_model
from models.weights.layout import check_shapes, located, places, stored_names
from models.weights.quantized import BlockForm, BlockMatrix
from models.weights.repository import Repository

_LAYER = re.compile(r"\.layers\.(\d+)\.")


class GgufWeights:
    """The tensors of a .gguf file, or of all parts of a split model. Only the bytes of requested tensors are read."""

    def __init__(self, path: Path) -> None:
        header = read_model_header(path)
        self._path = path
        self.repository: Repository | None = None
        self.settings: Mapping[str, Any] = {}
        self._tensors: dict[str, tuple[GgufTensor, ...]] = {}
        if header.metadata.get(Keys.General.ARCHITECTURE) in GGUF_FAMILIES:
            self._describe(header)
        else:
            self.repository = Repository(path, frozenset(header.tensors), undescribed_model(header, path))

    def _describe(self, header: GgufHeader) -> None:
        settings = gguf_settings(header, self._path)
        self.settings, architecture = settings.values, described(settings)
        found = places(architecture, whole(architecture.family, architecture.n_layers))
        self._architecture, self._family = architecture, FAMILIES[architecture.family]
        stored = by_checkpoint_name(self._family.gguf, stored_names(found), header.tensors)
        check_shapes(found, stored, self._path)
        self._tensors = located(found, stored)

    @property
    def architecture(self) -> Architecture:
        """What the model is. Raises WeightsError if exobus does not describe it."""
        if self.repository is not None:
            return self.repository.model.architecture
        return self._architecture

    def names(self) -> frozenset[str]:
        """List the canonical names of the model's tensors in the file."""
        return frozenset(self._tensors)

    def tensor(self, name: str) -> np.ndarray:
        """Read a tensor into a new C-contiguous float32 array. Raises WeightsError."""
        return self._in_checkpoint_order(name, read_tensor(self._path, self._stored(name)))

    def blocks(self, name: str) -> BlockMatrix | None:
        """Map a matrix as it is quantized; None for kinds that are not in FORMS. Raises WeightsError."""
        if self.form(name) is None:
            return None
        stored = self._stored(name)
        rows, heads = stored.shape[0], self._permuted_heads(name)
        order = _half_split(np.arange(rows), heads) if heads else None
        return PackedMatrix(mapped_bytes(self._path, stored).reshape(rows, -1), stored.kind, order)

    def form(self, name: str) -> BlockForm | None:
        """Return the form of what `blocks` returns. Raises WeightsError."""
        stored = self._stored(name)
        return FORMS.get(stored.kind) if len(stored.shape) == 2 else None

    def _stored(self, name: str) -> GgufTensor:
        if name not in self._tensors:
            raise WeightsError(f"{self._path} holds no tensor {name}; fetch the model again")
        (stored,) = self._tensors[name]
        return stored

    def _in_checkpoint_order(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Undo llama.cpp's permutation of the rows of q and k; other tensors pass unchanged."""
        heads = self._permuted_heads(name)
        return _half_split(rows, heads) if heads else rows

    def _permuted_heads(self, name: str) -> int:
        """Return the heads of a tensor if llama.cpp permutes its rows, else 0."""
        if not self._family.pairwise_rope:
            return 0
        heads = self.architecture.heads
        return heads.heads if ".q_proj." in name else heads.kv_heads if ".k_proj." in name else 0


def by_checkpoint_name(
    architecture: MODEL_ARCH, names: Iterable[str], tensors: Mapping[str, GgufTensor]
) -> dict[str, GgufTensor]:
    """Find the tensors with these checkpoint names: `model.layers.3.self_attn.q_proj.weight` is `blk.3.attn_q.weight`.

    The `gguf` package knows the GGUF name of each module. Tensors that are not there are left out.
    """
    # One layer stands for all, since the package makes a table as long as the number of layers.
    known = get_tensor_name_map(architecture, 1)
    found = {}
    for name in names:
        layer = _LAYER.search(name)
        stem, _, suffix = _LAYER.sub(".layers.0.", name).rpartition(".")
        module = known.get_name(stem)
        if module is None:  # a parameter without a module, such as attention sinks, is a module there
            module, suffix = known.get_name(f"{stem}.{suffix}"), "weight"
        stored = f"{module}.{suffix}".replace("blk.0.", f"blk.{layer[1]}.") if layer else f"{module}.{suffix}"
        if stored in tensors:
            found[name] = tensors[stored]
    return found


def in_gguf_order(architecture: Architecture, name: str, rows: np.ndarray) -> np.ndarray:
    """Permute the rows of a checkpoint's q or k as llama.cpp stores them; other tensors pass unchanged."""
    if ".q_proj." not in name and ".k_proj." not in name:
        return rows
    counts = architecture.heads
    heads = counts.heads if ".q_proj." in name else counts.kv_heads
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def _half_split(values: np.ndarray, heads: int) -> np.ndarray:
    """Reorder each head's rows from interleaved pairs, (2i, 2i + 1), to split halves, (i, i + d/2)."""
    pairs = values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)
