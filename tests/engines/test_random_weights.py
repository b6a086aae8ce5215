"""Random weights are the same in both forms."""

from __future__ import annotations

import numpy as np

from engines.probe import SETTINGS
from engines.random_weights import RandomWeights


def test_random_matrix_equals_its_quantized_form() -> None:
    weights = RandomWeights(SETTINGS)
    name = "model.layers.1.mlp.down_proj.weight"
    blocks = weights.blocks(name)
    assert blocks is not None
    np.testing.assert_array_equal(weights.tensor(name), blocks.rows(slice(None)))
    assert weights.blocks("model.norm.weight") is None
