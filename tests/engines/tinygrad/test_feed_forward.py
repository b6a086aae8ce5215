"""Routers choose as the reference does, and activations are its."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from tinygrad import Tensor

from engines.numpy.feed_forward import gated as gated_in_numpy
from engines.tinygrad.feed_forward import gated, route
from models.architecture import Activation, Experts, Mlp

pytestmark = pytest.mark.usefixtures("clang")


@pytest.mark.parametrize("norm", [True, False])
def test_equal_logits_choose_the_first_experts(norm: bool) -> None:
    logits = np.array([[0, 2, 1, 2, -1, 2], [3, 0, 1, 5, 5, 2], [-9, -8, 9, 0, 1, 2]], np.float32)
    chosen, shares = route(Tensor(logits), Experts(6, 2, Mlp(8), norm))
    assert chosen.tolist() == [[1, 3], [3, 4], [2, 5]]
    best = np.exp(np.take_along_axis(logits, chosen.numpy(), 1))
    total = (best if norm else np.exp(logits)).sum(1, keepdims=True)
    np.testing.assert_allclose(shares.numpy(), best / total, rtol=1e-5)


@pytest.mark.parametrize("activation", get_args(Activation))
def test_activation_has_the_numbers_of_the_reference(activation: Activation) -> None:
    gate, up = np.random.default_rng(0).standard_normal((2, 50), np.float32) * np.float32(6)
    ours = gated(activation, Tensor(gate), Tensor(up)).numpy()
    np.testing.assert_allclose(ours, gated_in_numpy(activation, gate, up), rtol=1e-5, atol=1e-5)
