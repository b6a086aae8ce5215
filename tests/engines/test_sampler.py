"""Sampling: what the filters keep, that draws follow the distribution, and that nothing else matters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cluster.sampling import SamplingParams
from engines.engine import FloatArray
from engines.errors import EngineError
from engines.sampler import kept, sample, uniform

LOGITS = arrays(np.float32, st.integers(1, 60), elements=st.floats(-30, 30, width=32).map(lambda x: round(x, 1)))
TINIEST = float(np.nextafter(0.0, 1.0))
TEMPERATURES = st.floats(TINIEST, 100) | st.floats(0.05, 5) | st.sampled_from([TINIEST, 1e-310, 1e-308, 1e-45, 2.0])
PARAMS = st.builds(
    SamplingParams,
    temperature=TEMPERATURES,
    top_p=st.floats(0, 1),
    top_k=st.integers(0, 70),
    min_p=st.floats(0, 1),
    seed=st.integers(-(2**63), 2**64 - 1),
)


def probabilities_of(logits: FloatArray, temperature: float) -> np.ndarray:
    scaled = logits.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled.max())
    return np.asarray(weights / weights.sum())


def test_greedy_takes_the_lowest_id_among_equals() -> None:
    assert sample(np.array([1, 7, 7, 3], np.float32), SamplingParams(temperature=0.0), 5) == 1


@given(LOGITS, PARAMS, st.integers(0, 10**6))
def test_draw_depends_only_on_its_arguments(logits: FloatArray, params: SamplingParams, position: int) -> None:
    first = sample(logits, params, position)
    uniform(3, 4)
    assert sample(logits.copy(), params, position) == first
    batch = np.stack((logits[::-1], logits))
    assert sample(batch[1], params, position) == first


@given(LOGITS, PARAMS, st.integers(0, 10**6))
def test_draw_is_one_of_the_kept_tokens(logits: FloatArray, params: SamplingParams, position: int) -> None:
    ids, probabilities = kept(logits, params)
    assert sample(logits, params, position) in ids
    assert probabilities.sum() == pytest.approx(1)
    assert list(ids) == sorted(set(ids))
    assert logits.max() in logits[ids]


@given(
    arrays(np.float32, st.integers(1, 60), elements=st.floats(width=32, allow_nan=False, max_value=2.0**127)),
    st.integers(0, 59),
    PARAMS,
    st.integers(0, 10**6),
)
def test_any_temperature_and_filters_draw_a_likely_token(
    logits: FloatArray, finite: int, params: SamplingParams, position: int
) -> None:
    logits[finite % len(logits)] = 1.0  # the others may be anything from -inf to the largest number
    ids, probabilities = kept(logits, params)
    assert np.isfinite(probabilities).all()
    assert probabilities.sum() == pytest.approx(1)
    chosen = sample(logits, params, position)
    assert probabilities[list(ids).index(chosen)] > 0


@pytest.mark.parametrize("temperature", [TINIEST, 1e-310, 2.3e-308, 1e-300, 1e-45, 1e-8])
@pytest.mark.parametrize("filters", [{}, {"top_p": 0.9}, {"min_p": 0.1}, {"top_k": 5}, {"top_p": 0.0}], ids=str)
def test_temperature_near_zero_is_greedy(temperature: float, filters: dict[str, Any]) -> None:
    logits = np.array([-3, 9.25, -np.inf, 9.5, 0], np.float32)
    params = SamplingParams(temperature=temperature, **filters)
    assert {sample(logits, params, position) for position in range(50)} == {3}


@given(LOGITS, st.integers(1, 70))
def test_top_k_prefers_lower_ids_among_equals(logits: FloatArray, top_k: int) -> None:
    expected = sorted(range(len(logits)), key=lambda token: (-logits[token], token))[:top_k]
    ids, _ = kept(logits, SamplingParams(top_k=top_k))
    assert list(ids) == sorted(expected)


@given(LOGITS, st.floats(0.01, 0.99), st.floats(0.1, 3))
def test_top_p_keeps_the_smallest_sufficient_set(logits: FloatArray, top_p: float, temperature: float) -> None:
    probabilities = probabilities_of(logits, temperature)
    order = sorted(range(len(logits)), key=lambda token: (-probabilities[token], token))
    ids, _ = kept(logits, SamplingParams(temperature=temperature, top_p=top_p))
    assert list(ids) == sorted(order[: len(ids)])
    assert probabilities[order[: len(ids)]].sum() >= top_p - 1e-9
    assert probabilities[order[: len(ids) - 1]].sum() < top_p + 1e-9


@given(LOGITS, st.floats(0, 1))
def test_min_p_is_relative_to_the_likeliest(logits: FloatArray, min_p: float) -> None:
    probabilities = probabilities_of(logits, 1.0)
    ids, _ = kept(logits, SamplingParams(min_p=min_p))
    threshold = min_p * probabilities.max()
    assert set(np.flatnonzero(probabilities > threshold * (1 + 1e-9))) <= set(ids)
    assert set(ids) <= set(np.flatnonzero(probabilities >= threshold * (1 - 1e-9)))


def test_filters_apply_in_the_documented_order() -> None:
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.1], np.float32))
    # Of the two that top_k leaves, renormalised to 4/7 and 3/7, the first alone reaches 0.55.
    assert list(kept(logits, SamplingParams(top_k=2, top_p=0.55))[0]) == [0]
    # At temperature 2 the probabilities are flatter (0.33, 0.28, 0.23, 0.16), so that 0.55 needs two.
    assert list(kept(logits, SamplingParams(temperature=2.0, top_p=0.55))[0]) == [0, 1]
    assert list(kept(logits, SamplingParams(top_p=0.85, min_p=0.6))[0]) == [0, 1]


@pytest.mark.parametrize(
    "params",
    [SamplingParams(temperature=0.8, seed=7), SamplingParams(temperature=1.3, top_k=6, top_p=0.9, seed=1)],
)
def test_draws_follow_the_distribution(params: SamplingParams) -> None:
    logits = np.random.default_rng(0).normal(size=12).astype(np.float32)
    draws = 20_000
    ids, probabilities = kept(logits, params)
    chosen = [sample(logits, params, position) for position in range(draws)]
    counts = np.array([chosen.count(token) for token in ids])
    assert counts.sum() == draws
    chi_square = ((counts - draws * probabilities) ** 2 / (draws * probabilities)).sum()
    # The 99.9 % points of the chi-square distribution for 1 to 11 degrees of freedom.
    limits = (10.83, 13.82, 16.27, 18.47, 20.52, 22.46, 24.32, 26.12, 27.88, 29.59, 31.26)
    assert chi_square < limits[len(ids) - 2]


def test_adjacent_positions_and_seeds_are_uncorrelated() -> None:
    grid = np.array([[uniform(seed, position) for position in range(200)] for seed in range(50)])
    assert 0 <= grid.min() < grid.max() < 1
    along_positions = np.corrcoef(grid[:, :-1].ravel(), grid[:, 1:].ravel())[0, 1]
    along_seeds = np.corrcoef(grid[:-1].ravel(), grid[1:].ravel())[0, 1]
    assert abs(along_positions) < 0.03
    assert abs(along_seeds) < 0.03
    assert grid.mean() == pytest.approx(0.5, abs=0.01)


def test_random_stream_never_changes() -> None:
    recorded = [0.8720734548204873, 0.0828426870273763, 0.49725446074894275]
    assert [uniform(7, position) for position in (0, 1, 2**40)] == recorded


@pytest.mark.parametrize("damage", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_non_finite_logits_are_rejected(damage: float, temperature: float) -> None:
    logits = np.array([1, damage, 2], np.float32)
    with pytest.raises(EngineError, match="not finite numbers"):
        sample(logits, SamplingParams(temperature=temperature), 0)


def test_token_of_zero_probability_is_never_drawn() -> None:
    logits = np.array([0, -np.inf, 0], np.float32)
    assert {sample(logits, SamplingParams(), position) for position in range(200)} == {0, 2}
