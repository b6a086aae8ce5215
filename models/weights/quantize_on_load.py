"""Weights with float matrices that are rounded to blocks when they are read, for engines that multiply with blocks.

What a file has quantized stays as it is, and so do norms, biases, routers and experts. The embedding and the head get
8 bits in any case. What is rounded is kept in the model cache, in a GGUF file with canonical names, so that the next
load reads no more than the blocks.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np

from cluster.shard import Shard
from models.architecture import Architecture
from models.weights.checkpoint import EMBEDDING, HEAD, Shape, tensor_shapes
from models.weights.gguf.blocks import FORMS
from models.weights.gguf.header import GgufTensor
from models.weights.gguf.packed_matrix import PackedMatrix
from models.weights.gguf.tensors import mapped_bytes
from models.weights.quantized import BlockForm, BlockMatrix
from models.weights.reader import Weights
from models.weights.rounded_file import RoundedFile
from models.weights.rounding import BLOCK, KINDS, rounded_blocks

_ROUTER = ".mlp.gate.weight"  # a small error there chooses other experts


def rounded_bits(name: str, shape: Shape, stored: BlockForm | None, bits: int) -> int:
    """Return to how many bits a tensor is rounded if matrices are rounded to `bits`; 0 if it stays as it is."""
    if not bits or stored is not None or len(shape) != 2 or shape[1] % BLOCK or name.endswith(_ROUTER):
        return 0
    return 8 if name in (EMBEDDING, HEAD) else bits


class QuantizeOnLoad:
    """The weights of a shard from `source`, its float matrices in blocks of `bits` bits.

    With `file` they are read from there, and are written there first if it does not exist.
    """

    def __init__(self, source: Weights, shard: Shard, bits: int, file: RoundedFile | None = None) -> None:
        self._source = source
        self._file = file
        self.settings, self.repository = source.settings, source.repository
        shapes = tensor_shapes(source.architecture, shard)
        found = {name: rounded_bits(name, shape, source.form(name), bits) for name, shape in shapes.items()}
        self._bits = {name: rounded for name, rounded in found.items() if rounded}
        self._kinds = {name: KINDS[rounded] for name, rounded in self._bits.items()}
        self._shapes = {name: shapes[name] for name in self._bits}

    @property
    def architecture(self) -> Architecture:
        """What the model is."""
        return self._source.architecture

    @property
    def rounds(self) -> bool:
        """Whether any matrix is rounded."""
        return bool(self._kinds)

    def names(self) -> frozenset[str]:
        """List the tensors of the source."""
        return self._source.names()

    def tensor(self, name: str) -> np.ndarray:
        """Read a tensor as float32, with the numbers of its blocks if it has any."""
        if name not in self._kinds:
            return self._source.tensor(name)
        return self._rounded(name).rows(slice(None))

    def blocks(self, name: str) -> BlockMatrix | None:
        """Read a matrix as its file quantized it, or as it is rounded."""
        return self._rounded(name) if name in self._kinds else self._source.blocks(name)

    def form(self, name: str) -> BlockForm | None:
        """Return the form of what `blocks` returns."""
        return FORMS[self._kinds[name]] if name in self._kinds else self._source.form(name)

    @cached_property
    def _kept(self) -> tuple[Path, dict[str, GgufTensor]] | None:
        return self._file.open(self._kinds, self._shapes, self._bytes) if self._file else None

    def _rounded(self, name: str) -> PackedMatrix:
        if self._kept is not None:
            path, tensors = self._kept
            packed = mapped_bytes(path, tensors[name])
        else:
            packed = self._bytes(name)
        return PackedMatrix(packed.reshape(self._shapes[name][0], -1), self._kinds[name])

    def _bytes(self, name: str) -> np.ndarray:
        return rounded_blocks(self._source.tensor(name), self._bits[name])
