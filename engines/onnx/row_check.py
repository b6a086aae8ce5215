"""From how many rows on the integer kernels of this machine's processor give a row the same bits.

The runtime chooses its kernels by the processor. Those for AVX-512 give the same bits from one row on; those for AVX2
add up the 4-bit products of a lone row in another order.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from engines.onnx.graph import Graph
from engines.onnx.linear import quantized_product
from engines.onnx.shard_model import new_session
from models.weights.quantized import BlockForm, QuantizedMatrix

BLOCK, SIZE, ROWS = 32, 64, 9


@cache
def fewest_rows(bits: int) -> int:
    """Return from how many rows on, at most ROWS, a small product with `bits`-bit weights keeps the bits of each."""
    random = np.random.default_rng(0)
    codes = random.integers(0, 1 << bits, (SIZE, SIZE), np.uint8)
    scales = random.random((SIZE, SIZE // BLOCK), np.float32)
    graph = Graph()
    rows = graph.input("rows", np.float32, ("rows", SIZE))
    matrix = QuantizedMatrix(codes, scales, -scales, BlockForm(bits, BLOCK, None))
    product = quantized_product(graph, rows, [matrix])
    graph.nodes("Identity", product, outputs=[graph.output("output", ("rows", SIZE))])
    session = new_session(graph)
    batch = random.standard_normal((ROWS, SIZE), np.float32)
    products = [session.run(None, {"rows": batch[:rows]})[0] for rows in range(1, ROWS + 1)]
    differ = [rows for rows, product in enumerate(products, 1) if not np.array_equal(product, products[-1][:rows])]
    return max(differ, default=0) + 1
