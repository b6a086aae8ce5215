"""Products with a model's matrices in tinygrad, and how the device holds them. Knows no layers.

A matrix of bfloat16 is held in 16 bits and widened inside of the kernel that multiplies with it, by a shift, so the
device needs no 16-bit type. One of float16 is not: tinygrad's cast made a product of 32 rows 15 times slower on a CPU.
"""

from __future__ import annotations

import numpy as np
from tinygrad import Tensor, dtypes

from engines.engine import FloatArray

LayerWeights = dict[str, Tensor]
"""One layer's tensors by checkpoint name without the layer's prefix, such as `self_attn.q_proj.weight`."""


def hold(tensor: FloatArray) -> Tensor:
    """Copy a tensor to the device, and a matrix as the bits of bfloat16, uint16, if that loses nothing."""
    bits = tensor.view(np.uint32)
    is_short = tensor.ndim > 1 and not (bits & 0xFFFF).any()
    return Tensor((bits >> 16).astype(np.uint16) if is_short else tensor).realize()


def floats(held: Tensor) -> Tensor:
    """Widen what `hold` made, or rows of it, to float32."""
    return (held.cast(dtypes.uint32) << 16).bitcast(dtypes.float32) if held.dtype == dtypes.uint16 else held


def linear(weights: LayerWeights, name: str, rows: Tensor) -> Tensor:
    """Multiply with the transpose of a matrix (outputs, inputs), and add its bias if it has one."""
    product = rows @ floats(weights[f"{name}.weight"]).transpose()
    bias = weights.get(f"{name}.bias")
    return product if bias is None else product + bias


def linear_of_each(weights: LayerWeights, name: str, rows: Tensor, chosen: Tensor) -> Tensor:
    """Multiply (rows, 1 or top_k, inputs) with the matrices of each row's experts, `chosen` (rows, top_k).

    The matrices are (experts, outputs, inputs). Returns (rows, top_k, outputs).
    """
    matrices = floats(weights[f"{name}.weight"][chosen])
    product = (rows.unsqueeze(2) @ matrices.transpose(-1, -2)).squeeze(2)
    bias = weights.get(f"{name}.bias")
    return (product if bias is None else product + bias[chosen]).contiguous()
