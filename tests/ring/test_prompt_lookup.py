"""`ring.prompt_lookup`: drafts continue the text, pay if it repeats itself, and cost little if it does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.openings import MAX_DRAFTS
from ring.prompt_lookup import MATCHES, SPEED_FLOOR, PromptLookup, accepted, most_worthwhile

texts = st.lists(st.integers(0, 3), max_size=60)
costs = st.one_of(st.sampled_from([0.0, 0.25]), st.floats(0, 2))
seeds = st.integers(0, 2**32)


@dataclass
class Run:
    """The cost of decoding a text: `slowest` is the lowest speed at the end of any pass; plain decoding has 1."""

    tokens: int = 0
    passes: int = 0
    cost: float = 0.0
    slowest: float = float("inf")
    most: int = 0

    @property
    def speed(self) -> float:
        return self.tokens / self.cost


def decode(lookup: PromptLookup, answer: Sequence[int], row_cost: float = 0.25, limit: int = MAX_DRAFTS) -> Run:
    """Decode `answer`, the sampler's tokens, with drafts."""
    run = Run()
    while run.tokens < len(answer):
        drafts = lookup.propose(limit)
        assert len(drafts) <= max(min(limit, MAX_DRAFTS), 0)
        sampled = answer[run.tokens : run.tokens + len(drafts) + 1]
        right = min(accepted(drafts, sampled), len(sampled) - 1)
        lookup.verified(len(drafts), right)
        lookup.extend(sampled[: right + 1])
        run.tokens += right + 1
        run.passes += 1
        run.cost += 1 + len(drafts) * row_cost
        run.slowest = min(run.slowest, run.speed)
        run.most = max(run.most, len(drafts))
    return run


def random_text(seed: int, length: int, vocabulary: int) -> list[int]:
    random = Random(seed)
    return [random.randrange(vocabulary) for _ in range(length)]


def latest_match(text: list[int]) -> int | None:
    """Return the position after the latest earlier occurrence of the longest end of a text, by exhaustive search."""
    for length in MATCHES:
        for end in range(len(text) - 1, length - 1, -1):
            if text[end - length : end] == text[-length:]:
                return end
    return None


@given(texts, texts, st.integers(1, 12))
def test_draft_continues_the_latest_longest_match(prompt: list[int], answer: list[int], limit: int) -> None:
    lookup = PromptLookup(prompt, row_cost=0.0)
    lookup.extend(answer)
    drafts = lookup.propose(limit)
    text = [*prompt, *answer]
    start = latest_match(text)
    if start is None:
        assert drafts == ()
        return
    assert len(drafts) == min(limit, MAX_DRAFTS)
    for draft in drafts:
        text.append(draft)
        assert draft == text[start]
        start += 1


@given(texts, st.lists(texts, max_size=4), st.integers(-2, 12))
def test_propose_changes_nothing(prompt: list[int], answers: list[list[int]], limit: int) -> None:
    lookup = PromptLookup(prompt, row_cost=0.0)
    for answer in answers:
        lookup.extend(answer)
        assert lookup.propose(limit) == lookup.propose(limit)


def is_predictable(word: list[int]) -> bool:
    """Return whether, in a text that repeats the word, the longest match always determines the next token."""
    text, length = word * 10, MATCHES[0]
    runs = {(tuple(text[at : at + length]), text[at + length]) for at in range(len(word))}
    return len({run for run, _ in runs}) == len(runs)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=12).filter(is_predictable), st.integers(1, 12))
def test_every_draft_is_accepted_in_a_predictable_text(word: list[int], limit: int) -> None:
    text = word * 12
    run = decode(PromptLookup(text, row_cost=0.0), word * 20, row_cost=0.0, limit=limit)
    assert run.passes == -(-run.tokens // (min(limit, MAX_DRAFTS) + 1))


@given(texts, st.lists(st.integers(0, 3), min_size=1, max_size=300), costs, st.integers(-1, 12))
def test_drafts_never_cost_more_than_the_floor(
    prompt: list[int], answer: list[int], row_cost: float, limit: int
) -> None:
    run = decode(PromptLookup(prompt, row_cost), answer, row_cost, limit)
    assert run.tokens == len(answer)
    assert run.slowest >= SPEED_FLOOR - 1e-9


@settings(max_examples=30)
@given(seeds, st.sampled_from([4, 10, 100, 10_000]))
def test_random_text_is_hardly_slower(seed: int, vocabulary: int) -> None:
    text = random_text(seed, 1500, vocabulary)
    run = decode(PromptLookup(text[:500]), text[500:])
    assert run.speed >= SPEED_FLOOR
    assert run.slowest >= SPEED_FLOOR - 1e-9


@settings(max_examples=30)
@given(seeds, st.integers(1, 40))
def test_repeating_text_takes_far_fewer_passes(seed: int, period: int) -> None:
    run = decode(PromptLookup([]), (random_text(seed, period, 1000) * 400)[:400])
    assert run.tokens / run.passes >= 1.5
    assert run.speed >= 1.5


@settings(max_examples=30)
@given(seeds)
def test_edited_copy_of_the_prompt_takes_fewer_passes(seed: int) -> None:
    random = Random(seed)
    prompt = random_text(seed, 600, 5000)
    answer = [random.randrange(5000) if random.random() < 0.05 else token for token in prompt]
    run = decode(PromptLookup(prompt), answer)
    assert run.tokens / run.passes >= 1.5
    assert run.speed >= 1.3


def test_drafts_grow_with_success_and_resume_after_failures() -> None:
    verse, noise = random_text(1, 60, 1000), random_text(2, 600, 4)
    lookup = PromptLookup(verse)
    assert lookup.propose(MAX_DRAFTS) == ()
    first = decode(lookup, verse * 2)
    assert first.most == MAX_DRAFTS
    assert decode(lookup, noise).speed < 1.1
    again = decode(lookup, verse * 4)
    assert again.most == MAX_DRAFTS
    assert again.speed >= 1.3


def test_costly_rows_mean_no_proposals() -> None:
    assert decode(PromptLookup([], row_cost=1.0), [1, 2, 3] * 100, row_cost=1.0).most == 0


def test_drafts_continue_past_the_end_of_the_text() -> None:
    assert PromptLookup([7, 7, 7], row_cost=0.0).propose(5) == (7,) * 5
    assert PromptLookup([1, 2, 1, 2], row_cost=0.0).propose(5) == (1, 2, 1, 2, 1)


@given(texts, texts)
def test_drafts_are_accepted_until_one_is_wrong(drafts: list[int], sampled: list[int]) -> None:
    count = accepted(drafts, sampled)
    assert drafts[:count] == sampled[:count]
    assert count == min(len(drafts), len(sampled)) or drafts[count] != sampled[count]


@given(st.floats(0, 1), st.floats(0, 2), st.integers(0, 10))
def test_proposed_number_of_drafts_has_the_best_rate(chance: float, row_cost: float, limit: int) -> None:
    def rate(count: int) -> float:
        return sum(chance**n for n in range(count + 1)) / (1 + count * row_cost)

    best = most_worthwhile(chance, row_cost, limit)
    assert 0 <= best <= limit
    assert rate(best) >= max(rate(count) for count in range(limit + 1)) * (1 - 1e-12)


@pytest.mark.parametrize(("proposed", "right"), [(2, 3), (1, -1)])
def test_impossible_count_is_refused(proposed: int, right: int) -> None:
    with pytest.raises(ValueError, match="cannot have been right"):
        PromptLookup([]).verified(proposed, right)


@pytest.mark.parametrize("row_cost", [-0.1, float("nan")])
def test_impossible_cost_is_refused(row_cost: float) -> None:
    with pytest.raises(ValueError, match="a row cannot cost"):
        PromptLookup([], row_cost)
