"""Scaling rules stretch the wavelengths that they should, and no others."""

from __future__ import annotations

import math

import numpy as np
import pytest

from engines.rope import frequencies, rotations
from models.architecture import LongRope, Rope, Yarn

PLAIN = Rope(10000.0, 64)


@pytest.mark.parametrize("truncate", [True, False])
def test_yarn_stretches_only_what_rotates_little(truncate: bool) -> None:
    scaled = frequencies(Rope(10000.0, 64, Yarn(8.0, 1024, 16.0, 1.0, 1.0, truncate)))
    turns = frequencies(PLAIN) * 1024 / (2 * math.pi)
    stretched = frequencies(PLAIN) / scaled
    # Rounding moves the ends of the ramp by one plane at most, and a plane is a factor of 10000 ** (1 / 32).
    plane = 10000 ** (1 / 32)
    np.testing.assert_allclose(stretched[turns > 16 * plane], 1.0, rtol=1e-6)
    np.testing.assert_allclose(stretched[turns < 1 / plane], 8.0, rtol=1e-6)
    between = stretched[(turns < 16 / plane) & (turns > plane)]
    assert len(between) > 5
    assert (np.diff(between) > 0).all()
    assert 1.0 < between[0] < between[-1] < 8.0


def test_ends_of_the_ramp_lie_between_planes_unless_truncated() -> None:
    rounded, exact = (Rope(10000.0, 64, Yarn(8.0, 1024, 16.0, 1.0, 1.0, truncate)) for truncate in (True, False))
    ramp = (np.arange(32) - 8.064) / (17.697 - 8.064)  # 64 * ln(1024 / (2 pi beta)) / (2 ln 10000) for beta 16 and 1
    kept = 1 - np.clip(ramp, 0, 1)
    expected = frequencies(PLAIN) * (kept + (1 - kept) / 8)
    np.testing.assert_allclose(frequencies(exact), expected, rtol=1e-3)
    assert np.abs(frequencies(rounded) / expected - 1).max() > 0.01


def test_factor_of_a_rule_is_in_cosines_and_sines() -> None:
    divisors = tuple(1.0 + index for index in range(32))
    cosines, sines = rotations(Rope(10000.0, 64, LongRope(divisors, 1.5)), np.array([0, 3]))
    angles = 3 * frequencies(PLAIN) / np.array(divisors)
    np.testing.assert_allclose(cosines, 1.5 * np.cos([0 * angles, angles]), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(sines, 1.5 * np.sin([0 * angles, angles]), rtol=1e-5, atol=1e-6)
