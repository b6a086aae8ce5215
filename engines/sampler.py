"""Sampling the next token, as a pure function of logits, parameters and position. Keeps no state."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cluster.sampling import SEEDS, SamplingParams
from engines.engine import FloatArray
from engines.errors import EngineError


def sample(logits: FloatArray, params: SamplingParams, position: int) -> int:
    """Choose a token id from `logits` (vocab,) for `position`, the position that the token will have.

    The random number is number `position` of a counter-based stream keyed by the seed (Philox: Salmon et al.,
    "Parallel random numbers: as easy as 1, 2, 3", 2011), so a replay on any node chooses the same token.
    At temperature 0 the largest logit wins, and among equals the lowest id. A logit of -inf excludes its token. Raises
    EngineError if a logit is NaN or inf, or none is finite.
    """
    if not np.isfinite(logits.max()):  # one NaN makes the maximum NaN
        raise EngineError("the model's logits are not finite numbers; its weights are damaged, fetch it again")
    if params.temperature == 0:
        return int(logits.argmax())
    ids, probabilities = kept(logits, params)
    # Ids are in ascending order, so a last-bit difference between two engines cannot swap two tokens.
    cumulative = probabilities.cumsum()
    drawn = uniform(params.seed, position) * cumulative[-1]
    return int(ids[min(int(cumulative.searchsorted(drawn, side="right")), len(ids) - 1)])


def kept(logits: FloatArray, params: SamplingParams) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """Filter the tokens. Returns the ids that are kept, ascending, and their probabilities, which sum to 1.

    The filters apply in the order temperature, which must be above 0, top_k, top_p, min_p, each to what the one before
    has left.
    """
    scaled = _scaled(logits, params.temperature)
    ids = np.arange(len(scaled))
    if 0 < params.top_k < len(scaled):
        ids = _likeliest(scaled, params.top_k)
    weights = np.exp(scaled[ids])
    probabilities = weights / weights.sum()
    if params.top_p < 1:
        inside = _nucleus(probabilities, params.top_p)
        ids, probabilities = ids[inside], probabilities[inside]
    if params.min_p > 0:
        inside = np.flatnonzero(probabilities >= params.min_p * probabilities.max())
        ids, probabilities = ids[inside], probabilities[inside]
    return ids, probabilities / probabilities.sum()


def uniform(seed: int, position: int) -> float:
    """Return a number in [0, 1) that depends only on seed and position."""
    return float(np.random.Generator(np.random.Philox(key=seed % SEEDS, counter=position)).random())


def _scaled(logits: FloatArray, temperature: float) -> npt.NDArray[np.float64]:
    """Return the logits divided by the temperature, less a constant, so that the largest is 0.

    Subtracted before it is divided by: near temperature 0, where the quotient is too large for a number, every token
    but the likeliest becomes -inf, which is the limit.
    """
    below = logits.astype(np.float64) - float(logits.max())
    with np.errstate(over="ignore"):
        return below / temperature


def _likeliest(scaled: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.intp]:
    """Return the ids of the `count` largest values, ascending. Among equals the lower id is kept."""
    least = np.partition(scaled, -count)[-count]
    above = np.flatnonzero(scaled > least)
    equal = np.flatnonzero(scaled == least)[: count - len(above)]
    return np.sort(np.concatenate((above, equal)))


def _nucleus(probabilities: npt.NDArray[np.float64], top_p: float) -> npt.NDArray[np.intp]:
    """Return the indices, ascending, of the fewest most likely tokens that sum to a probability of `top_p`."""
    # Values below (1 - top_p) / n sum to less than 1 - top_p, so the set lies among the others, and only those are
    # sorted. The bound is halved so that rounding cannot drop a flat distribution as a whole.
    candidates = np.flatnonzero(probabilities >= (1 - top_p) / (2 * len(probabilities)))
    order = candidates[np.argsort(-probabilities[candidates], kind="stable")]
    size = int(probabilities[order].cumsum().searchsorted(top_p)) + 1
    return np.sort(order[:size])
