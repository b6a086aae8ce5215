"""Rotary position embeddings as a model's settings describe them. The rules are those of transformers' `rope_utils`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

from models.architecture import Linear, Llama3, LongRope, Rope, RopeScaling, Yarn
from models.settings import Settings


def rope_of(settings: Settings, head_dim: int, theta: float = 10000.0) -> Rope:
    """Read theta, rotated part and scaling, from `rope_parameters` or from the older settings. Raises WeightsError.

    `theta` is what the family has if the settings do not say.
    """
    given = settings.group("rope_parameters" if settings.get("rope_parameters") else "rope_scaling")
    theta = given.number("rope_theta", settings.number("rope_theta", theta))
    part = given.number("partial_rotary_factor", settings.number("partial_rotary_factor", 1.0), most=1.0)
    if theta <= 1:
        raise settings.unusable("rope_theta")
    dims = round(head_dim * part)
    if dims % 2:
        raise settings.unusable("partial_rotary_factor")
    return Rope(theta, dims, scaling_of(settings, given, dims))


def scaling_of(settings: Settings, given: Settings, dims: int) -> RopeScaling | None:
    """Read the scaling rule in `given`, for `dims` rotated dimensions. Raises WeightsError."""
    kind = given.get("rope_type") or given.get("type") or (None if "factor" in given.values else "default")
    if kind == "default":
        return None
    rule = RULES.get(kind) if isinstance(kind, str) else None
    if rule is None:
        raise settings.unsupported(f"asks for rope scaling {kind!r}, and exobus has {', '.join(RULES)}")
    return rule(settings, given, dims)


def _linear(settings: Settings, given: Settings, dims: int) -> Linear:
    return Linear(given.number("factor"))


def _llama3(settings: Settings, given: Settings, dims: int) -> Llama3:
    low, high = given.number("low_freq_factor"), given.number("high_freq_factor")
    if low >= high:
        raise given.unusable("high_freq_factor")
    return Llama3(given.number("factor"), low, high, given.count("original_max_position_embeddings"))


def _yarn(settings: Settings, given: Settings, dims: int) -> Yarn:
    factor = given.number("factor")
    attention = _magnitude(factor)
    if given.get("mscale") and given.get("mscale_all_dim"):
        attention = _magnitude(factor, given.number("mscale")) / _magnitude(factor, given.number("mscale_all_dim"))
    return Yarn(
        factor,
        given.count("original_max_position_embeddings", settings.count("max_position_embeddings", 2048)),
        given.number("beta_fast", 32.0),
        given.number("beta_slow", 1.0),
        given.number("attention_factor", attention),
        given.flag("truncate", True),
    )


def _magnitude(factor: float, mscale: float = 1.0) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _longrope(settings: Settings, given: Settings, dims: int) -> LongRope:
    """Take the divisors for long texts if the context is longer than the original one.

    transformers changes over within a text, and then the keys of its beginning have other divisors than the rest.
    """
    context = settings.count("max_position_embeddings")
    # Phi-3 has it beside the group, newer files in it.
    original = given.count(
        "original_max_position_embeddings", settings.count("original_max_position_embeddings", context)
    )
    stretch = context / original
    factor = math.sqrt(1 + math.log(stretch) / math.log(max(original, 2))) if stretch > 1 else 1.0
    divisors = given.numbers("long_factor" if stretch > 1 else "short_factor", dims // 2)
    return LongRope(divisors, given.number("attention_factor", factor))


RULES: Mapping[str, Callable[[Settings, Settings, int], RopeScaling]] = MappingProxyType(
    {"linear": _linear, "llama3": _llama3, "yarn": _yarn, "longrope": _longrope, "su": _longrope}
)
"""The scaling rules by their names in `config.json`; `su` is the old name of longrope."""
