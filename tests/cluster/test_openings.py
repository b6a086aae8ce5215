"""`cluster.openings`: what an opening may be, and when its generation ends."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest

from cluster.openings import Opening
from cluster.sampling import SamplingParams

VALID: dict[str, Any] = msgspec.to_builtins(
    Opening((1, 2, 3), 3, 8, frozenset({2}), SamplingParams(), ("ipc:///a/gateway.ring",))
)


def opening(prompt: tuple[int, ...] = (1, 2, 3), first_position: int = 3, max_tokens: int = 5) -> Opening:
    return Opening(prompt, first_position, max_tokens, frozenset({2}), SamplingParams(), ())


def test_generation_ends_at_stop_token_or_limit() -> None:
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


@pytest.mark.parametrize(
    ("field", "where"),
    [
        ({"prompt": [1] * 300_000}, "prompt"),
        ({"prompt": [1, 2, -1]}, "prompt[2]"),
        ({"first_position": 2**18 + 1}, "first_position"),
        ({"first_position": 0}, "first_position"),
        ({"max_tokens": 2**30 + 1}, "max_tokens"),
        ({"eos": list(range(257))}, "eos"),
        ({"reply_to": ["ipc:///a/b.ring"] * 9}, "reply_to"),
        ({"reply_to": ["ipc:///" + "a" * 300]}, "reply_to[0]"),
        ({"drafts": 256}, "drafts"),
        ({"reuse": list(range(2**17 + 1))}, "reuse"),
        ({"drop": [-1]}, "drop[0]"),
        ({"vocabulary": -1}, "vocabulary"),
        ({"sampling": {"temperature": float("nan")}}, "sampling"),
    ],
    ids=lambda given: str(given)[:40],
)
def test_each_field_of_an_opening_has_a_bound(field: dict[str, Any], where: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=re.escape(f"$.{where}`")):
        msgspec.msgpack.decode(msgspec.msgpack.encode({**VALID, **field}), type=Opening)
