"""How many bytes the parts of a model take in an engine that keeps quantized matrices packed. Reads no tensor."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from models.architecture import Architecture
from models.card import PACKED_BITS, PackedSizes
from models.sizes import FLOAT32_BYTES
from models.weights.checkpoint import EMBEDDING, HEAD, Shape, layer_shapes
from models.weights.gguf.blocks import FORMS
from models.weights.quantize_on_load import rounded_bits
from models.weights.quantized import BlockForm
from models.weights.rounding import KINDS

STRIDE = 128
"""Columns that ONNX Runtime's 8-bit kernel processes at once; rows are filled up to a multiple of it."""

Forms = Callable[[str], BlockForm | None]
"""The form in which a file has a tensor, by its name; None for floats, and for what the file does not have."""


def packed_sizes(architecture: Architecture, form: Forms) -> PackedSizes:
    """Count the bytes of the largest layer, the embedding and the head. Experts are held as float32.

    A quantized embedding counts nothing: its rows are looked up in the mapped file, whose pages the system takes back.
    """
    table = (architecture.vocab_size, architecture.hidden_size)
    head = EMBEDDING if architecture.tied_embedding else HEAD
    sizes = []
    for bits in PACKED_BITS:
        layers = [_layer_bytes(architecture, index, form, bits) for index in range(architecture.n_layers)]
        mapped = _rounded(EMBEDDING, table, form, bits) is not None
        looked_up = 0 if mapped else FLOAT32_BYTES * prod(table)
        sizes.append((max(layers), looked_up, _product_bytes(table, _rounded(head, table, form, bits))))
    layer, embedding, product = zip(*sizes, strict=True)
    return PackedSizes(layer, embedding, product)


def form_named(quant: str) -> BlockForm | None:
    """Return the form of most matrices of a file by its quantization's name, such as `Q4_K_M`; None if it has none."""
    kinds = (kind for kind in FORMS if quant.upper().removeprefix("UD-").startswith(kind.name))
    return next((FORMS[kind] for kind in kinds), None)


def _layer_bytes(architecture: Architecture, index: int, form: Forms, bits: int) -> int:
    shapes = layer_shapes(architecture.layers[index], architecture.hidden_size)
    names = {f"model.layers.{index}.{name}": shape for name, shape in shapes.items()}
    return sum(_product_bytes(shape, _rounded(name, shape, form, bits)) for name, shape in names.items())


def _rounded(name: str, shape: Shape, form: Forms, bits: int) -> BlockForm | None:
    """Return the form that a tensor is held in if float matrices are rounded to `bits` bits."""
    stored = form(name) if len(shape) == 2 else None
    rounded = rounded_bits(name, shape, stored, bits)
    return FORMS[KINDS[rounded]] if rounded else stored


def _product_bytes(shape: Shape, form: BlockForm | None) -> int:
    """Count what ONNX Runtime holds: codes, and for each block its scale, without a center what is added, and two
    numbers more for its 4- and 8-bit kernels. That was measured on layers and heads of each kind.
    """
    if form is None:
        return FLOAT32_BYTES * prod(shape)
    rows, columns = shape
    columns = -(-columns // STRIDE) * STRIDE if form.bits == 8 else columns
    numbers = 3 if form.center is not None else 4
    return rows * (columns * form.bits // 8 + columns // form.block * FLOAT32_BYTES * numbers)
