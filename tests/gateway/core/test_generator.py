"""`gateway.core.generator`: the limits of a choice and its sampling, which need no node.

How it finds an instance is in test_instance_provider.py, with a real gateway.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.failures import FailureCode
from cluster.placement import Instance, PlacedStage
from cluster.sampling import SamplingParams
from cluster.shard import Shard
from gateway.core.errors import ErrorKind, GatewayError, RequestField
from gateway.core.generator import DEFAULT_MAX_TOKENS, check_ids, memory_limit, sampling_params, token_limit
from gateway.core.request import SamplingOptions
from models.card import SamplingDefaults
from models.catalogue import DEFAULT_MODEL, Catalogue

DEFAULTS = SamplingDefaults(0.25, 0.75, 30, 0.125)


def ring(*positions: int) -> Instance:
    """Return a ring of stages that hold so many positions."""
    n = len(positions)
    stages = (PlacedStage("a", Shard("tiny", at, at + 1, n), positions=held) for at, held in enumerate(positions))
    return Instance("i", "tiny", 1, tuple(stages))


@given(st.integers(0, 500), st.none() | st.integers(1, 10**9), st.integers(1, 512))
def test_token_limit_stays_within_the_context(prompt_tokens: int, asked: int | None, left: int) -> None:
    assert token_limit(asked, prompt_tokens, prompt_tokens + left) == min(asked or DEFAULT_MAX_TOKENS, left)


@given(st.integers(1, 500), st.integers(1, 500), st.lists(st.integers(0, 1200), min_size=1, max_size=4))
def test_session_reserves_what_every_stage_can_hold(max_tokens: int, prompt_tokens: int, positions: list[int]) -> None:
    held = min((known for known in positions if known), default=10**9)
    if prompt_tokens < held:
        assert memory_limit(max_tokens, prompt_tokens, ring(*positions)) == min(max_tokens, held - prompt_tokens)
        return
    with pytest.raises(GatewayError) as caught:
        memory_limit(max_tokens, prompt_tokens, ring(*positions))
    error = caught.value
    assert (error.kind, error.code, error.field) == (
        ErrorKind.TOO_LARGE,
        FailureCode.TOO_LARGE,
        RequestField.PROMPT,
    )
    assert f"holds {held} " in error.message


def test_token_that_only_the_tokenizer_knows_is_refused() -> None:
    card = Catalogue.load().get(DEFAULT_MODEL)
    check_ids((1, card.vocab_size - 1), card)
    with pytest.raises(
        GatewayError, match=r"has the token 49152, and smollm2-135m knows 49152; leave it out"
    ) as caught:
        check_ids((1, card.vocab_size), card)
    assert caught.value.kind is ErrorKind.INVALID_REQUEST


def test_card_fills_unset_sampling_options() -> None:
    assert sampling_params(SamplingOptions(), DEFAULTS, 3) == SamplingParams(0.25, 0.75, 30, 0.125, 3)
    asked = SamplingOptions(temperature=0.0, top_p=1.0, top_k=0, min_p=0.0)
    assert sampling_params(asked, DEFAULTS, 3) == SamplingParams(0.0, 1.0, 0, 0.0, 3)
