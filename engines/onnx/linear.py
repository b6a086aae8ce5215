"""Products with the model's matrices, in either precision. Knows no layers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engines.engine import FloatArray
from engines.onnx.graph import CONTRIBUTED, Graph
from engines.onnx.unpacking import unpack
from engines.settings import Precision
from models.weights.quantized import BlockMatrix
from models.weights.reader import Weights

INTEGER_ROWS = 4
"""The `accuracy_level` of MatMulNBits that rounds the rows to int8."""

EIGHT_BIT_STRIDE = 128
"""Columns that the 8-bit kernel processes at once. It processes the rest block by block, so that 576 columns take a
fifth longer than 640. For the 4-bit kernel longer rows would cost more than they save."""

MAX_WEIGHT_BYTES = 1 << 30
"""The runtime accepts less than 2 GB for one weight."""


def linear(graph: Graph, rows: str, weights: Weights, precision: Precision, *names: str) -> str:
    """Multiply (rows, inputs) with the named checkpoint matrices, outputs side by side, and add their biases.

    `fast` and `invariant` keep quantized matrices as they are stored, and round the rows to 8 bits, with a float32
    scale for each block. Other matrices, and all in `exact`, are float32.
    """
    stored = [None if precision == "exact" else weights.blocks(f"{name}.weight") for name in names]
    blocks = [found for found in stored if found is not None]
    if len({found.form if found else None for found in stored}) > 1:  # they cannot be stacked
        return graph.node("Concat", *(linear(graph, rows, weights, precision, name) for name in names), axis=1)
    if blocks:
        product = quantized_product(graph, rows, blocks)
    else:
        product = float_product(graph, rows, _stacked(weights, [f"{name}.weight" for name in names]))
    held = weights.names()
    biases = [f"{name}.bias" for name in names if f"{name}.bias" in held]
    return graph.node("Add", product, graph.weight(_stacked(weights, biases))) if biases else product


def _stacked(weights: Weights, names: Sequence[str]) -> FloatArray:
    tensors = [weights.tensor(name) for name in names]
    return np.concatenate(tensors) if len(tensors) > 1 else tensors[0]


def float_product(graph: Graph, rows: str, matrix: FloatArray) -> str:
    """Multiply with the transpose of (outputs, inputs). A very large head is several products side by side."""
    parts = np.array_split(matrix, -(-matrix.nbytes // MAX_WEIGHT_BYTES))
    products = [graph.node("Gemm", rows, graph.weight(part), transB=1) for part in parts]
    return products[0] if len(products) == 1 else graph.node("Concat", *products, axis=1)


def quantized_product(graph: Graph, rows: str, matrices: Sequence[BlockMatrix]) -> str:
    """Multiply with the transpose of quantized (outputs, inputs) of one form, stacked.

    The operator's weights are (code - zero) * scale. Codes are shifted so that their middle is the operator's zero. The
    rest of each weight, minimum + middle * scale, is constant in a block, so it is multiplied with the sum of the
    block's inputs. A matrix with a center has no rest: the center is its middle.
    """
    form, outputs, inputs = matrices[0].form, sum(matrix.shape[0] for matrix in matrices), matrices[0].shape[1]
    pad = -inputs % EIGHT_BIT_STRIDE if form.bits == 8 else 0
    if pad:
        rows = graph.node("Pad", rows, graph.constant(0, 0, 0, pad))
    shape = outputs, (inputs + pad) // form.block
    codes, codes_array = graph.empty_weight((*shape, form.block * form.bits // 8), np.uint8)
    scales, scales_array = graph.empty_weight(shape, np.float32)
    product = graph.node(
        "MatMulNBits",
        rows,
        codes,
        scales,
        domain=CONTRIBUTED,
        K=inputs + pad,
        N=outputs,
        bits=form.bits,
        block_size=form.block,
        accuracy_level=INTEGER_ROWS,
    )
    if form.center is not None:
        unpack(matrices, codes_array, scales_array)
        return product
    rest, rest_array = graph.empty_weight(shape, np.float32)
    unpack(matrices, codes_array, scales_array, rest_array)
    in_blocks = graph.node("Reshape", rows, graph.constant(-1, shape[1], form.block))
    block_sums = graph.node("ReduceSum", in_blocks, graph.constant(2), keepdims=0)
    return graph.node("Gemm", block_sums, rest, product, transB=1)
