"""`cli.bus.patterns`: NATS wildcards, against a definition by regular expressions."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.bus.patterns import check_pattern, literal_prefix, matches

WORDS = st.sampled_from(["a", "b", "tap", "session"])
TOPICS = st.lists(WORDS, min_size=1, max_size=4).map(".".join)
PATTERNS = st.tuples(
    st.lists(st.one_of(WORDS, st.just("*")), min_size=0, max_size=3), st.sampled_from(["a", "*", ">"])
).map(lambda parts: ".".join([*parts[0], parts[1]]))


def by_definition(pattern: str, topic: str) -> bool:
    """Match by the definition: `*` is one word, a last `>` one or more; tapped work needs a pattern with `tap`."""
    if topic.startswith("tap.") and not pattern.startswith("tap."):
        return False
    expression = re.escape(pattern).replace(r"\*", r"[^.]+").replace(">", ".+")
    return re.fullmatch(expression, topic) is not None


@given(PATTERNS, TOPICS)
def test_pattern_matches_by_its_definition(pattern: str, topic: str) -> None:
    check_pattern(pattern)
    assert matches(pattern, topic) == by_definition(pattern, topic)


@given(PATTERNS, TOPICS)
def test_every_match_begins_with_the_literal_prefix(pattern: str, topic: str) -> None:
    assert not matches(pattern, topic) or topic.startswith(literal_prefix(pattern))


@pytest.mark.parametrize(
    ("pattern", "prefix"), [("session.*", "session."), (">", ""), ("a.b", "a.b"), ("a.*.b", "a."), ("tap.>", "tap.")]
)
def test_literal_prefix_is_the_longest(pattern: str, prefix: str) -> None:
    assert literal_prefix(pattern) == prefix


@pytest.mark.parametrize("pattern", ["", ".", "a..b", ">.a", "a."])
def test_malformed_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="not a pattern"):
        check_pattern(pattern)


@pytest.mark.parametrize(
    ("pattern", "matched"), [("tap.>", False), ("tap.*.hello", False), ("tap.actor.*", True), ("tap.actor.hello", True)]
)
def test_frequent_hellos_are_matched_by_name_only(pattern: str, matched: bool) -> None:
    assert matches(pattern, "tap.actor.hello") == matched
    assert matches("tap.>", "tap.actor.start")
