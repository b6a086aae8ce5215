"""Products with the model's matrices, in either precision. Knows no layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from engines.engine import FloatArray
from engines.onnx.graph import CONTRIBUTED, Graph
from engines.settings import Precision
from models.weights.quantized import QuantizedMatrix
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
        product = quantized_product(graph, rows, QuantizedMatrix.stacked(blocks))
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


def quantized_product(graph: Graph, rows: str, blocks: QuantizedMatrix) -> str:
    """Multiply with the transpose of a quantized (outputs, inputs).

    The operator's weights are (code - zero) * scale. Codes are shifted so that their middle is the operator's zero. The
    rest of each weight, minimum + middle * scale, is constant in a block, so it is multiplied with the sum of the
    block's inputs. A matrix with a center has no rest: the center is its middle.
    """
    pad = -blocks.codes.shape[1] % EIGHT_BIT_STRIDE
    if blocks.bits == 8 and pad:
        blocks, rows = _padded(blocks, pad), graph.node("Pad", rows, graph.constant(0, 0, 0, pad))
    outputs, inputs = blocks.codes.shape
    # Of the codes that occur, since kinds of 2 or 5 bits have codes of 4 or 8 here.
    middle = (1 << int(blocks.codes.max()).bit_length()) // 2 if blocks.center is None else blocks.center
    shift = (1 << (blocks.bits - 1)) - middle
    product = graph.node(
        "MatMulNBits",
        rows,
        graph.weight(_operator_order(blocks, shift)),
        graph.weight(blocks.scales),
        domain=CONTRIBUTED,
        K=inputs,
        N=outputs,
        bits=blocks.bits,
        block_size=blocks.block,
        accuracy_level=INTEGER_ROWS,
    )
    if blocks.center is not None:
        return product
    rest = graph.weight(blocks.minimums + middle * blocks.scales)
    in_blocks = graph.node("Reshape", rows, graph.constant(-1, blocks.scales.shape[1], blocks.block))
    block_sums = graph.node("ReduceSum", in_blocks, graph.constant(2), keepdims=0)
    return graph.node("Gemm", block_sums, rest, product, transB=1)


def _padded(blocks: QuantizedMatrix, columns: int) -> QuantizedMatrix:
    """Append columns of zeros."""
    of_codes, of_blocks = ((0, 0), (0, columns)), ((0, 0), (0, columns // blocks.block))
    return replace(
        blocks,
        codes=np.pad(blocks.codes, of_codes),
        scales=np.pad(blocks.scales, of_blocks),
        minimums=np.pad(blocks.minimums, of_blocks),
    )


def _operator_order(blocks: QuantizedMatrix, shift: int) -> npt.NDArray[np.uint8]:
    """Arrange codes as MatMulNBits expects them: (outputs, blocks, bytes), 4-bit pairs in a byte, the first one low."""
    codes = blocks.codes.reshape(*blocks.scales.shape, blocks.block) + np.uint8(shift)
    return codes if blocks.bits == 8 else codes[..., 0::2] | codes[..., 1::2] << np.uint8(4)
