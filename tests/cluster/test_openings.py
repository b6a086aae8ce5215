"""`cluster.openings`: what an opening may be, and when its generation ends."""

from __future__ import annotations

import pytest

from cluster.openings import Opening
from cluster.sampling import SamplingParams


def opening(prompt: tuple[int, ...] = (1, 2, 3), first_position: int = 3, max_tokens: int = 5) -> Opening:
    return Opening(prompt, first_position, max_tokens, frozenset({2}), SamplingParams(), ())


def test_generation_ends_at_a_stop_token_or_its_limit() -> None:
    asked = opening(max_tokens=3)
    assert [asked.finish_reason(7, index) for index in range(4)] == ["", "", "length", "length"]
    assert asked.finish_reason(2, 0) == "stop"


def test_positions_cover_prompt_and_answer() -> None:
    assert opening(max_tokens=5).positions == 8


@pytest.mark.parametrize(
    "invalid",
    [opening((), 1), opening(first_position=2), opening(first_position=4), opening(max_tokens=0)],
    ids=["no prompt", "within the prompt", "beyond the prompt", "no answer"],
)
def test_check_refuses_an_opening_that_does_not_fit(invalid: Opening) -> None:
    with pytest.raises(ValueError, match="needs a prompt"):
        invalid.check()
    opening().check()
