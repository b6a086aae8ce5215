"""Reads one tensor of a GGUF file, as bytes or as float32, or maps its bytes. Knows no model.

Quantized tensors are dequantized in pieces that fit a processor's cache.
"""

from __future__ import annotations

import math
import mmap
from pathlib import Path

import gguf
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from models.errors import WeightsError
from models.weights.gguf.header import GgufTensor
from models.weights.gguf.parts import part_path

_PIECE_WEIGHTS = 1 << 16


def read_bytes(path: Path, stored: GgufTensor) -> np.ndarray:
    """Read the tensor's bytes as they are stored: flat uint8. `path` is the first file of a split model.

    Raises WeightsError.
    """
    path = part_path(path, stored.part)
    try:
        packed = np.fromfile(path, np.uint8, stored.nbytes, offset=stored.offset)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror}); fetch the model again") from error
    if packed.size != stored.nbytes:
        raise WeightsError(f"{path} was cut short while it was read; delete it and fetch the model again")
    return packed


def mapped_bytes(path: Path, stored: GgufTensor) -> np.ndarray:
    """Map the tensor's bytes as they are stored: flat uint8, read-only, from disk as they are looked at.

    Reading would fill memory with a copy, which takes longer than what is done with it. Raises WeightsError.
    """
    path = part_path(path, stored.part)
    first = stored.offset % mmap.ALLOCATIONGRANULARITY
    start, length = stored.offset - first, first + stored.nbytes
    try:
        with path.open("rb") as file:
            pages = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ, offset=start)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror}); fetch the model again") from error
    except ValueError as error:  # the file ends before its tensor does
        raise WeightsError(f"{path} was cut short while it was read; delete it and fetch the model again") from error
    return np.frombuffer(pages, np.uint8)[first:]


def read_tensor(path: Path, stored: GgufTensor) -> np.ndarray:
    """Read the tensor as float32, with its rows in the file's order. Raises WeightsError."""
    packed = read_bytes(path, stored)
    if stored.kind == GGMLQuantizationType.F32:
        return packed.view("<f4").reshape(stored.shape)
    try:
        return _dequantized(packed, stored).reshape(stored.shape)
    except NotImplementedError as error:
        raise WeightsError(
            f"{path} stores weights as {stored.kind.name}, which cannot be read; pick another"
        ) from error


def _dequantized(packed: np.ndarray, stored: GgufTensor) -> np.ndarray:
    """Convert to flat float32. Blocks do not span rows, so the pieces need not follow rows either."""
    block, block_bytes = GGML_QUANT_SIZES[stored.kind]
    values = np.empty(math.prod(stored.shape), np.float32)
    step = max(_PIECE_WEIGHTS // block, 1)
    for first in range(0, values.size // block, step):
        piece = packed[first * block_bytes : (first + step) * block_bytes]
        if stored.kind == GGMLQuantizationType.F16:
            piece = piece.view("<f2")
        values[first * block : (first + step) * block] = gguf.dequantize(piece, stored.kind)
    return values
