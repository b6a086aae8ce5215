"""Products with the model's matrices, in one of two precisions. Knows no layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from engines.engine import Array, FloatArray
from engines.onnx.graph import CONTRIBUTED, Graph
from engines.precision import Precision
from models.quantized import QuantizedMatrix
from models.weights import Weights

INTEGER_ROWS = 4
"""MatMulNBits' `accuracy_level` that rounds the rows to int8."""

EIGHT_BIT_STRIDE = 128
"""Columns that the 8-bit kernel takes at once. What is left over it takes block by block, so that 576 columns take a
fifth longer than 640; the 4-bit kernel loses less by that than by longer rows."""

MOST_BYTES = 1 << 30
"""Of one weight: the runtime takes less than 2 GB."""


def linear(graph: Graph, rows: str, weights: Weights, precision: Precision, *names: str) -> str:
    """Multiply (rows, inputs) with the named checkpoint matrices, their outputs side by side, biases added.

    `fast` keeps matrices that are stored as blocks so, and rounds the rows to 8 bits, each block of them with a
    float32 scale; other matrices, and all in `exact`, are float32.
    """
    stored = [weights.blocks(f"{name}.weight") if precision == "fast" else None for name in names]
    blocks = [found for found in stored if found is not None]
    if len({_form(found) for found in stored}) > 1:
        return graph.node("Concat", *(linear(graph, rows, weights, precision, name) for name in names), axis=1)
    if blocks:
        product = integers(graph, rows, QuantizedMatrix.stacked(blocks))
    else:
        product = floats(graph, rows, _stacked(weights, [f"{name}.weight" for name in names]))
    held = weights.names()
    biases = [f"{name}.bias" for name in names if f"{name}.bias" in held]
    return graph.node("Add", product, graph.weight(_stacked(weights, biases))) if biases else product


def _form(blocks: QuantizedMatrix | None) -> tuple[int, int, int | None] | None:
    """Matrices of one form can be stacked into one."""
    return None if blocks is None else (blocks.bits, blocks.block, blocks.centre)


def _stacked(weights: Weights, names: Sequence[str]) -> FloatArray:
    tensors = [weights.tensor(name) for name in names]
    return np.concatenate(tensors) if len(tensors) > 1 else tensors[0]


def floats(graph: Graph, rows: str, matrix: FloatArray) -> str:
    """Rows times the transpose of (outputs, inputs); a very large head is several products side by side."""
    parts = np.array_split(matrix, -(-matrix.nbytes // MOST_BYTES))
    products = [graph.node("Gemm", rows, graph.weight(part), transB=1) for part in parts]
    return products[0] if len(products) == 1 else graph.node("Concat", *products, axis=1)


def integers(graph: Graph, rows: str, blocks: QuantizedMatrix) -> str:
    """The operator's weight is (code - zero) * scale; what that leaves out is the same for a whole block."""
    pad = -blocks.codes.shape[1] % EIGHT_BIT_STRIDE
    if blocks.bits == 8 and pad:
        blocks, rows = _widened(blocks, pad), graph.node("Pad", rows, graph.constant(0, 0, 0, pad))
    outputs, inputs = blocks.codes.shape
    zero = 1 << (blocks.bits - 1)
    shift = 0 if blocks.centre is None else zero - blocks.centre
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
    if blocks.centre is not None:
        return product
    left_out = graph.weight(blocks.minimums + zero * blocks.scales)
    return graph.node("Gemm", _block_sums(graph, rows, blocks), left_out, product, transB=1)


def _widened(blocks: QuantizedMatrix, columns: int) -> QuantizedMatrix:
    """With so many columns more, of zeros."""
    of_codes, of_blocks = ((0, 0), (0, columns)), ((0, 0), (0, columns // blocks.block))
    return replace(
        blocks,
        codes=np.pad(blocks.codes, of_codes),
        scales=np.pad(blocks.scales, of_blocks),
        minimums=np.pad(blocks.minimums, of_blocks),
    )


def _block_sums(graph: Graph, rows: str, blocks: QuantizedMatrix) -> str:
    """(rows, inputs) -> (rows, inputs / block)."""
    shape = graph.constant(-1, blocks.scales.shape[1], blocks.block)
    return graph.node("ReduceSum", graph.node("Reshape", rows, shape), graph.constant(2), keepdims=0)


def _operator_order(blocks: QuantizedMatrix, shift: int) -> Array:
    """Codes as MatMulNBits wants them, (outputs, blocks, bytes): two neighbours in a byte, the first one low."""
    codes = blocks.codes.reshape(*blocks.scales.shape, blocks.block) + np.uint8(shift)
    return codes if blocks.bits == 8 else codes[..., 0::2] | codes[..., 1::2] << np.uint8(4)
