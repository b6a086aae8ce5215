"""What a model's `generation_config.json` recommends: how to sample, and which ids end an answer. Reads no file.

The names are those of transformers, which defines the format. A value that is not given leaves its option off, as in
vLLM and SGLang: transformers would keep the 50 likeliest tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, TypeGuard

from cluster.sampling import SamplingParams
from models.card import SamplingDefaults

HONORED = ("temperature", "top_p", "top_k", "min_p")
NOT_HONORED = (
    "do_sample", "epsilon_cutoff", "eta_cutoff", "frequency_penalty", "length_penalty", "no_repeat_ngram_size",
    "num_beams", "penalty_alpha", "presence_penalty", "repetition_penalty", "typical_p",
)  # fmt: skip
"""Names that change how transformers samples, but not how exobus does."""

_IDS = 1 << 31

logger = logging.getLogger(__name__)


def sampling_defaults(settings: Mapping[str, Any], where: str) -> SamplingDefaults | None:
    """Return the recommended sampling, or None if there is none.

    A value that is no number or out of its range is left out, with a warning that names it and the file `where`.
    """
    if ignored := [name for name in NOT_HONORED if settings.get(name) is not None]:
        logger.debug("%s sets %s, which exobus does not do", where, ", ".join(ignored))
    given = {name: _usable(name, settings[name], where) for name in HONORED if settings.get(name) is not None}
    usable = {name: value for name, value in given.items() if value is not None}
    return SamplingDefaults(**usable) if usable else None


def end_ids(settings: Mapping[str, Any]) -> set[int]:
    """Return the ids that end an answer, which files write as a number or as a list."""
    listed = settings.get("eos_token_id")
    return {token for token in (listed if isinstance(listed, list) else [listed]) if _is_id(token)}


def _usable(name: str, value: Any, where: str) -> Any:
    """Return a value as the sampler takes it, or None. A `top_k` of -1 means all, as 0 does."""
    kind = int if name == "top_k" else (int, float)
    try:
        if isinstance(value, bool) or not isinstance(value, kind):
            raise ValueError(f"{name} must be a number, got {str(value)[:40]!r}")
        value = 0 if name == "top_k" and value == -1 else value
        SamplingParams(**{name: value})
    except ValueError as error:
        logger.warning("%s is not followed: %s", where, error)
        return None
    return value if name == "top_k" else float(value)


def _is_id(token: Any) -> TypeGuard[int]:
    return isinstance(token, int) and not isinstance(token, bool) and 0 <= token < _IDS
